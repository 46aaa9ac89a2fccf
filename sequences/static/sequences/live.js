// Keeps a page up to date while something on it changes. The page works without this script.
//
// [data-seq-live="2000"] with data-seq-url is fetched again every 2000 ms; in it, each element with
// an id and data-seq-region is replaced by that of the new page if it differs. Polling ends when
// the new page has no interval. Messages come from data-seq-says-…, and go to [data-seq-says].
"use strict";

(() => {
    const LONGEST = 60000; // between two tries, if the server does not answer
    const PATIENCE = 30000; // with one answer

    class Live {
        constructor(root) {
            this.root = root;
            this.says = root.querySelector("[data-seq-says]");
            this.interval = Number(root.dataset.seqLive);
            this.failures = 0;
            this.timer = null;
            this.digests = new Map(this.regions(root).map(digestOf));
            document.addEventListener("visibilitychange", () => this.look());
            this.say("live");
            this.look();
        }

        regions(root) {
            return Array.from(root.querySelectorAll("[data-seq-region][id]"));
        }

        // What the page already has: the server leaves it out of the response.
        known() {
            return Array.from(this.digests, ([id, digest]) => `${id}=${digest}`).join(",");
        }

        say(state) {
            const text = this.root.dataset[`seqSays${state[0].toUpperCase()}${state.slice(1)}`] || "";
            // A screen reader would read the text out again if it were set again.
            if (this.says && this.says.textContent !== text) this.says.textContent = text;
            this.root.dataset.seqState = state;
        }

        // Pause while the tab is hidden, and poll at once when it is shown.
        look() {
            clearTimeout(this.timer);
            if (this.interval <= 0) return;
            if (document.hidden) return this.say("paused");
            const woken = this.root.dataset.seqState === "paused";
            if (woken) this.say("live");
            this.wait(woken ? 0 : this.interval);
        }

        wait(time) {
            clearTimeout(this.timer);
            this.timer = setTimeout(() => this.refresh(), time);
        }

        async refresh() {
            if (this.busy) return;
            this.busy = true;
            const begun = performance.now();
            let pause = 0;
            try {
                const page = await this.fetch();
                if (page) this.show(page);
                this.failures = 0;
                // Poll a slow server less often.
                pause = Math.max(this.interval, 4 * (performance.now() - begun));
            } catch (error) {
                this.failures += 1;
                pause = Math.min(this.interval * 2 ** this.failures, LONGEST);
                if (this.failures > 1) this.say("trouble");
            }
            this.busy = false;
            if (this.interval > 0 && !document.hidden) this.wait(pause);
        }

        async fetch() {
            const control = new AbortController();
            const alarm = setTimeout(() => control.abort(), PATIENCE);
            try {
                const response = await fetch(this.root.dataset.seqUrl, {
                    credentials: "same-origin",
                    headers: {
                        "X-Requested-With": "sequences-live",
                        "X-Sequences-Regions": this.known(),
                    },
                    signal: control.signal,
                });
                if (response.status === 403 || response.status === 404) return this.stop("gone");
                if (!response.ok) throw new Error(String(response.status));
                const text = await response.text();
                const page = new DOMParser().parseFromString(text, "text/html");
                const root = page.querySelector("[data-seq-live]");
                if (root) return root;
                // The user was logged out: the response is another page.
                return this.stop(page.querySelector("input[type=password]") ? "login" : "gone");
            } finally {
                clearTimeout(alarm);
            }
        }

        stop(why) {
            this.interval = 0;
            this.say(why);
            return null;
        }

        show(root) {
            this.regions(root).forEach((region) => this.replace(region));
            this.interval = Number(root.dataset.seqLive);
            this.say(this.interval > 0 ? "live" : "stopped");
        }

        replace(region) {
            const old = document.getElementById(region.id);
            const [id, digest] = digestOf(region);
            if (!old || region.hasAttribute("data-seq-same") || this.digests.get(id) === digest) return;
            this.digests.set(id, digest);
            morph(old, region);
        }
    }

    const digestOf = (region) => [region.id, region.dataset.seqRegion];

    // Make an element equal to another one without touching what is the same: whatever people have
    // focused, typed, checked, selected, opened or scrolled stays, and so do event listeners.
    function morph(old, fresh) {
        if (old.nodeType !== Node.ELEMENT_NODE) {
            if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
            return;
        }
        morphAttributes(old, fresh);
        const byId = new Map(Array.from(old.children).filter((one) => one.id).map((one) => [one.id, one]));
        let next = old.firstChild;
        for (const child of fresh.childNodes) {
            const alike = next && !next.id && !child.id && next.nodeName === child.nodeName;
            const match = child.id ? byId.get(child.id) : alike && next;
            if (!match || match.nodeName !== child.nodeName) {
                old.insertBefore(document.importNode(child, true), next);
                continue;
            }
            // Do not move an element if those before it are gone: moving it would lose the focus.
            while (next !== match && next && !fresh.querySelector(selectorOf(next))) next = removed(next);
            if (next === match) next = next.nextSibling;
            else old.insertBefore(match, next);
            morph(match, child);
        }
        while (next) next = removed(next);
    }

    function removed(node) {
        const next = node.nextSibling;
        node.remove();
        return next;
    }

    // A selector without matches, for a node without an id.
    function selectorOf(node) {
        return node.id ? `:scope > #${CSS.escape(node.id)}` : ":not(*)";
    }

    function morphAttributes(old, fresh) {
        // The reader decides which fold-outs are open, and which rows are selected.
        const kept = old.matches("details") ? "open" : null;
        if (old.matches("tr.selected")) fresh.classList.add("selected");
        for (const { name } of Array.from(old.attributes)) {
            if (name !== kept && !fresh.hasAttribute(name)) old.removeAttribute(name);
        }
        for (const { name, value } of fresh.attributes) {
            if (name !== kept && old.getAttribute(name) !== value) old.setAttribute(name, value);
        }
    }

    const start = () => document.querySelectorAll("[data-seq-live]").forEach((root) => {
        if (Number(root.dataset.seqLive) > 0) new Live(root);
    });
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
    else start();
})();
