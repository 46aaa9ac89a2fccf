// Keeps the progress of runs on a page up to date: fetches this part of the page again after the
// time that the part itself specifies, until it specifies none. Without this script, the part stays
// as the server rendered it.
(() => {
  "use strict";
  const PATIENCE = 15000; // milliseconds that an answer may take
  const LONGEST = 60000; // between two questions to a server that does not answer

  const find = (root) => root.querySelector("[data-seq-now]");

  function watch(place) {
    const url = place.dataset.seqProgress;
    let failures = 0;
    let timer;

    const told = () => Number(find(place).dataset.seqPoll) || 0;

    // A page that swaps its content without a reload has removed the part for good.
    function isGone() {
      if (!place.isConnected) document.removeEventListener("visibilitychange", wake);
      return !place.isConnected;
    }

    function wake() {
      plan(0);
    }

    function plan(delay) {
      clearTimeout(timer);
      if (isGone()) return;
      if (told() && !document.hidden) timer = setTimeout(ask, delay * (1 + Math.random() / 10));
    }

    async function ask() {
      if (isGone()) return;
      const begun = performance.now();
      try {
        const now = await fetched(url);
        if (isGone()) return;
        show(place, now);
        failures = 0;
      } catch {
        failures += 1;
      }
      const pause = told() * 2 ** failures;
      // Poll a slow server less often.
      plan(Math.max(Math.min(pause, LONGEST), told(), 3 * (performance.now() - begun)));
    }

    document.addEventListener("visibilitychange", wake);
    plan(told());
  }

  async function fetched(url) {
    const answer = await fetch(url, {
      cache: "no-store",
      headers: { Accept: "text/html" },
      signal: AbortSignal.timeout(PATIENCE),
    });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const now = find(page);
    // Our error responses are such a part, too, and the last one. Anything else is not: try again.
    if (!now) throw new Error(`${answer.status} from ${url}`);
    return now;
  }

  function show(place, now) {
    const before = find(place);
    const pairs = [...now.querySelectorAll("[data-seq-part]")].map((part) => [
      before.querySelector(`[data-seq-part="${part.dataset.seqPart}"]`),
      part,
    ]);
    if (pairs.every(([old]) => old)) {
      copyAttributes(before, now);
      pairs.forEach(([old, part]) => update(old, part));
    } else {
      before.replaceWith(now);
    }
    if (now.dataset.seqRedirect) leave(now.dataset.seqRedirect);
  }

  // In place, and only what differs: a screen reader announces what is new, and the focus stays.
  function update(old, part) {
    copyAttributes(old, part);
    if (old.innerHTML !== part.innerHTML) old.replaceChildren(...part.childNodes);
  }

  function copyAttributes(old, part) {
    for (const name of old.getAttributeNames()) {
      if (!part.hasAttribute(name)) old.removeAttribute(name);
    }
    for (const { name, value } of part.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
  }

  function leave(address) {
    const target = new URL(address, location.href);
    if (target.origin === location.origin) location.assign(target);
  }

  for (const place of document.querySelectorAll("[data-seq-progress]:not([data-seq-watched])")) {
    place.dataset.seqWatched = "";
    watch(place);
  }
})();
