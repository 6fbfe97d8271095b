import { createContext, createElement, type ReactNode, useContext } from "react";
import { createClient, type WeirClient } from "../client.js";

const Context = createContext<WeirClient | null>(null);
/** Clients of addresses that hooks were given, so that equal addresses share connections. */
const clients = new Map<string, WeirClient>();

/** Gives its client to the hooks below it that are given no address. */
export function WeirProvider({ client, children }: { client: WeirClient; children?: ReactNode }) {
  return createElement(Context.Provider, { value: client }, children);
}

/** The client of an address, else that of the provider, else that of the page's own origin. */
export function useClient(apiUrl: string | undefined, token: string | undefined): WeirClient {
  const provided = useContext(Context);
  if (provided !== null && apiUrl === undefined && token === undefined) return provided;
  const key = `${apiUrl ?? ""}\n${token ?? ""}`;
  let client = clients.get(key);
  // On a server nothing is kept: tokens differ from request to request.
  if (client === undefined) {
    client = createClient(apiUrl ?? "", { token });
    if (typeof window !== "undefined") clients.set(key, client);
  }
  return client;
}
