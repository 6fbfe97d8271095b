// Renders the Mermaid blocks of a page. `cargo xtask docs` copies mermaid.min.js into the book if npm is installed; without it
// the blocks remain text.
(() => {
  const blocks = [...document.querySelectorAll("code.language-mermaid")];
  if (blocks.length === 0) return;
  const script = document.createElement("script");
  script.src = `${path_to_root}mermaid.min.js`;
  script.onload = () => {
    for (const block of blocks) {
      const figure = document.createElement("pre");
      figure.className = "mermaid";
      figure.textContent = block.textContent;
      block.parentElement.replaceWith(figure);
    }
    mermaid.initialize({ startOnLoad: false, theme: document.documentElement.matches(".navy, .coal, .ayu") ? "dark" : "default" });
    mermaid.run();
  };
  document.head.append(script);
})();
