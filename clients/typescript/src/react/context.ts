import { createContext, createElement, type ReactNode, useContext } from "react";
import { createClient, type WeirClient } from "../client.js";

const Context = createContext<WeirClient | null>(null);
/** Clients by address and token, so that hooks with the same ones share connections. */
const clients = new Map<string, WeirClient>();

/** Provides a client for hooks below it without an address. */
export function WeirProvider({ client, children }: { client: WeirClient; children?: ReactNode }) {
  return createElement(Context.Provider, { value: client }, children);
}

/** The client for an address, otherwise that of the provider, otherwise one for the origin of the page. */
export function useClient(apiUrl: string | undefined, token: string | undefined): WeirClient {
  const provided = useContext(Context);
  if (provided !== null && apiUrl === undefined && token === undefined) return provided;
  const key = `${apiUrl ?? ""}\n${token ?? ""}`;
  let client = clients.get(key);
  // During server-side rendering clients are not cached: each request may have another token.
  if (client === undefined) {
    client = createClient(apiUrl ?? "", { token });
    if (typeof window !== "undefined") clients.set(key, client);
  }
  return client;
}
