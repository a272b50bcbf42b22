// The bar at the foot of the page: how it was served, and what a change of a price does. It comes from the headers of the
// response, since the page itself is the same for everyone.
(() => {
  const element = (name, content, className = "") => {
    const made = document.createElement(name);
    made.className = className;
    made.append(...[content].flat().filter((part) => part !== undefined));
    return made;
  };
  const time = (millis) => (millis < 1 ? `${Math.round(millis * 1000)} µs` : `${millis.toFixed(millis < 10 ? 1 : 0)} ms`);
  const many = (count, one, more) => `${count} ${count === 1 ? one : more}`;
  const names = { hit: "from the cache", stale: "from the cache, while it is made anew", miss: "made for you", bypass: "past the cache", collapsed: "made for another visitor at the same time" };
  const bar = element("aside", [], "bar");
  bar.id = "bar";
  bar.setAttribute("aria-label", "What the cache did");
  const path = location.pathname + location.search;

  const navigation = performance.getEntriesByType("navigation")[0];
  const timing = Object.fromEntries((navigation?.serverTiming ?? []).map((it) => [it.name, it]));
  const { cache, fill } = timing;
  const summary = element("p", []);
  if (cache) {
    summary.append(element("strong", names[cache.description] ?? cache.description), ` in ${time(cache.duration)}`);
    if (fill && cache.description === "hit") summary.append(` instead of ${time(fill.duration)}`);
  } else {
    summary.append("This page is not cached.");
  }
  bar.append(summary);

  async function details() {
    const page = await (await fetch(`/bar/page?${new URLSearchParams({ path })}`)).json();
    if (!page) return;
    summary.append(` · ${page.age_seconds} s old, ${many(page.hits, "hit", "hits")}, each saves ${many(page.queries, "query", "queries")}`);
    const depends = element("details", [element("summary", `depends on ${page.depends.length}`), element("p", page.depends.map((tag) => element("code", tag)))]);
    bar.insertBefore(depends, buttons);
  }

  // A price changes, and each page with it becomes new.
  async function change(id) {
    const answer = await fetch(`/bar/products/${id}/price`, { method: "POST", headers: { "X-Shop-Bar": "1" } });
    const { before, after, pages, error } = await answer.json();
    if (error) { result.replaceChildren(error); return; }
    const rows = [];
    for (const page of new Set([...pages, path])) {
      const [first, second] = [await load(page), await load(page)];
      rows.push(element("tr", [element("td", element("a", page)), element("td", first.outcome), element("td", first.text.includes(after) ? `shows ${after}` : "has no price of it"), element("td", second.outcome)]));
      rows.at(-1).querySelector("a").href = page;
      if (page === path) {
        const anew = new DOMParser().parseFromString(second.text, "text/html").querySelector("main");
        document.querySelector("main").replaceWith(anew);
      }
    }
    result.replaceChildren(element("p", `Product ${id} costs ${after} now, and ${before} before.`),
      element("table", [element("thead", element("tr", ["Page", "next request", "", "the one after"].map((title) => element("th", title)))), element("tbody", rows)]));
  }

  async function load(page) {
    // The browser has to ask, and larder need not: `no-store` would send a field that asks larder not to use its cache.
    const answer = await fetch(page);
    const status = answer.headers.get("cache-status") ?? "";
    return { text: await answer.text(), outcome: status.includes("; hit") ? "hit" : status.replace(/^larder; ?/, "").split(";")[0] || "not cached" };
  }

  const button = (text, act) => {
    const made = element("button", text);
    made.type = "button";
    made.addEventListener("click", async () => { made.disabled = true; try { await act(); } finally { made.disabled = false; } });
    return made;
  };
  const shown = path.match(/^\/products\/(\d+)/) ?? document.querySelector('main a[href^="/products/"]')?.getAttribute("href").match(/\/products\/(\d+)/);
  const dashboard = element("a", "Dashboard");
  dashboard.href = "/larder/";
  const buttons = element("p", [button("Load again", () => location.assign(location.href)), shown ? button("Change a price", () => change(shown[1])) : undefined, dashboard], "buttons");
  const result = element("div", [], "result");
  result.setAttribute("role", "status");
  bar.append(buttons, result);
  document.body.append(bar);
  details().catch(() => {}); // The bar is complete without them.
})();
