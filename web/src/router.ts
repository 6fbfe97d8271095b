import { useEffect, useState } from "preact/hooks";

interface Place {
  path: string;
  query: URLSearchParams;
}

const here = (): Place => ({ path: location.pathname.replace(/(.)\/$/, "$1"), query: new URLSearchParams(location.search) });

/** Navigates to a path of the page. */
export function go(path: string, replaces = false): void {
  history[replaces ? "replaceState" : "pushState"](null, "", path);
  dispatchEvent(new Event("weir-go"));
  if (!replaces) scrollTo(0, 0);
}

/** The current path and query. Clicks on links to the same origin navigate without loading a page. */
export function useLocation(): Place {
  const [place, put] = useState(here);
  useEffect(() => {
    const moved = (): void => put(here());
    const click = (event: MouseEvent): void => {
      const link = (event.target as Element).closest?.("a");
      if (!link || link.target || link.download || link.origin !== location.origin || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
      if (link.dataset.raw !== undefined) return;
      event.preventDefault();
      go(link.pathname + link.search);
    };
    addEventListener("popstate", moved);
    addEventListener("weir-go", moved);
    document.addEventListener("click", click);
    return () => {
      removeEventListener("popstate", moved);
      removeEventListener("weir-go", moved);
      document.removeEventListener("click", click);
    };
  }, []);
  return place;
}
