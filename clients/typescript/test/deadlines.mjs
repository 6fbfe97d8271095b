// Limits of the time of tests, for this package and the page.
import { test } from "node:test";

/** `test` of node:test with a limit for each test, in milliseconds. */
export function testWithin(limitMs) {
  return (name, options, run) =>
    typeof options === "function" ? test(name, { timeout: limitMs }, options) : test(name, { timeout: limitMs, ...options }, run);
}

/** Fails unless a promise is settled within `limitMs`. */
export async function within(promise, what, limitMs = 60_000) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} took longer than ${limitMs} ms`)), limitMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
