/** Milliseconds between two looks at what is waited for. */
const APART = 2;
/**
 * Wait for work of a browser that looks whether it has ended every 100 ms, and whenever something is
 * submitted, as Firefox does (bugzilla.mozilla.org, bug 1870699): submit nothing, again and again.
 */
export async function nudged<T>(work: Promise<T>, queue: GPUQueue): Promise<T> {
  let pending = true;
  const end = (): void => {
    pending = false;
  };
  work.then(end, end);
  while (pending) {
    await Promise.race([work, new Promise((resolve) => setTimeout(resolve, APART))]);
    if (pending) queue.submit([]);
  }
  return work;
}
