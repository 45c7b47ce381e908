{% include "steps.js" %}
(() => {
  const { fact, has, make, number, stepNode, strip, tagged } = Steps;
  const byId = (id) => document.getElementById(id);
  const KINDS = { p: "policy", o: "observation", r: "retrieved" };
  const wide = matchMedia("(min-width: 1181px)");

  // Where the data are: behind this server, or in this page.

  async function ask(path, parameters) {
    const query = new URLSearchParams();
    for (const [name, value] of parameters) {
      if (has(value) && value !== "") query.append(name, value);
    }
    const response = await fetch(`${path}?${query}`);
    const content = await response.json();
    if (!response.ok) throw new Error(content.error);
    return content;
  }

  const fromServer = {
    live: true,
    state: () => ask("api/state", []),
    runs: () => ask("api/runs", []),
    curves: (x, names) =>
      ask("api/curves", [["x", x], ...names.map((n) => ["name", n])]),
    list: (filters, after) => ask("api/trajectories",
      [...Object.entries(filters), ["after", after]]),
    open: (key) => ask("api/trajectory", [["key", key]]),
    key: async (run, trace) => (await ask("api/key",
      [["run", run], ["trace_id", trace]])).key,
  };

  const wordsOf = (text) => [...text.matchAll(/"([^"]*)"?\*?|([^\s"]+)/g)]
    .map((match) => (match[1] || match[2] || "").replace(/\*+$/, "").trim())
    .filter((word) => /[\p{L}\p{N}]/u.test(word));

  function fromPage(data) {
    const text = (row) => {
      const { question, steps } = { ...row, ...data.contents[row.key] };
      return [question, ...steps.map((step) => step.text || "")].join("\n")
        .toLowerCase();
    };
    const tests = {
      text: (row, value) => wordsOf(value.toLowerCase())
        .every((word) => text(row).includes(word)),
      first_update: (row, value) => row.at_update >= Number(value),
      last_update: (row, value) => row.at_update <= Number(value),
      hybrid: (row, value) => String(Number(row.hybrid)) === value,
      retrieved: (row, value) => String(Number(row.retrieved > 0)) === value,
      tool_error: (row, value) =>
        String(Number(row.tool_errors > 0)) === value,
    };
    const passes = (row, [name, value]) => !has(value) || value === "" ||
      (tests[name] ? tests[name](row, value) : String(row[name]) === value);
    return {
      live: false,
      state: async () => data.state,
      runs: async () => data.runs,
      curves: async (x, names) => Object.fromEntries(
        names.map((name) => [name, data.curves[x][name] || {}])),
      list: async (filters) => {
        const rows = data.rows.filter((row) =>
          Object.entries(filters).every((filter) => passes(row, filter)));
        return { rows, count: rows.length };
      },
      open: async (key) => {
        const content = data.contents[key];
        if (!content) throw new Error(`${key} is not in this page.`);
        const row = data.rows.find((other) => other.key === key);
        return { ...content, row, siblings: data.rows.filter((other) =>
          other.task === row.task && other.query_id === row.query_id) };
      },
      key: null,
    };
  }

  const held = byId("data");
  const source = held ? fromPage(JSON.parse(held.textContent)) : fromServer;

  // What is shown stands in the address, so that every view has a link.

  const FILTERS = ["text", "run", "task", "method", "seed", "first_update",
    "last_update", "query_id", "reward_class", "status", "finish", "origin",
    "hybrid", "retrieved", "tool_error"];

  function place() {
    const [tab, query] = location.hash.slice(1).split("?");
    return { tab: tab === "trajectories" ? tab : "runs",
      ...Object.fromEntries(new URLSearchParams(query || "")) };
  }

  function address(changes) {
    const { tab, ...values } = { ...place(), ...changes };
    const query = new URLSearchParams(Object.entries(values)
      .filter(([, value]) => has(value) && value !== ""));
    return `#${tab}` + (query.size ? `?${query}` : "");
  }

  function go(changes, { instead = false } = {}) {
    if (instead) location.replace(address(changes));
    else location.hash = address(changes);
  }

  const filtersOf = (at) =>
    Object.fromEntries(FILTERS.map((name) => [name, at[name] || ""]));

  // Runs and curves.

  let overview = { runs: [], warnings: [], troubles: [], metrics: [] };
  const hiddenMethods = new Set();

  function coloured(node, run) {
    node.classList.add("method");
    if (run.colour) node.style.setProperty("--light", run.colour);
    if (run.dark_colour) node.style.setProperty("--dark", run.dark_colour);
    return node;
  }

  const labelOf = (method) =>
    (overview.runs.find((run) => run.method === method) || {}).label || method;

  function table(head, rows) {
    return [make("thead", "", make("tr", "", ...head.map(([text, name]) => {
      const cell = make("th", name, text);
      cell.scope = "col";
      return cell;
    }))), make("tbody", "", ...rows)];
  }

  const share = (value) => has(value) ? number(100 * value, 1) : "–";
  const large = (value) => !has(value) ? "–" : value >= 1e6
    ? `${number(value / 1e6, 1)} M` : Math.round(value).toLocaleString("en");
  // Time of day, with the date where it is another day.
  function moment(seconds) {
    const [at, now] = [new Date(1000 * seconds), new Date()];
    const time = at.toLocaleTimeString([], { timeStyle: "short" });
    return at.toDateString() === now.toDateString() ? time
      : `${at.toLocaleDateString()} ${time}`;
  }
  const minutes = (seconds) => !has(seconds) ? "–"
    : seconds < 90 ? `${number(seconds, 0)} s`
      : seconds < 5400 ? `${number(seconds / 60, 0)} min`
        : `${number(seconds / 3600, 1)} h`;

  function runRow(run) {
    const link = make("a", "", coloured(make("i", "mark-line"), run),
      `${run.label}, seed ${run.seed}`);
    link.href = `#trajectories?${new URLSearchParams({ run: run.run })}`;
    link.title = "Its trajectories";
    const first = make("th", "", link);
    first.scope = "row";
    const { last } = run;
    const updates = make("td", "",
      `${large(last.update)}${run.planned ? ` of ${run.planned}` : ""}`);
    if (run.planned) {
      const fill = make("i", "");
      fill.style.width = `${Math.min(100, 100 * last.update / run.planned)}%`;
      updates.append(coloured(make("span", "done", fill), run));
    }
    return make("tr", "", first, make("td", "word", run.task), updates,
      make("td", "word", run.finished ? "finished"
        : `last written ${moment(run.written)}`),
      make("td", "", share(last["eval/accuracy"])),
      make("td", "", share(last["reward/accuracy"])),
      make("td", "", number(last["reward/mean"])),
      make("td", "", number(last["rollout/entropy"], 3)),
      make("td", "", large(last.generated_tokens)),
      make("td", "", minutes(last.seconds)));
  }

  function showOverview() {
    const { runs, warnings, troubles } = overview;
    byId("troubles").replaceChildren(
      ...troubles.map((text) => make("p", "trouble", text)));
    byId("run-table").replaceChildren(...table([["Run", ""], ["Task", "word"],
      ["Updates", ""], ["State", "word"], ["Held out, %", ""],
      ["Right, %", ""], ["Reward", ""], ["Entropy, nats", ""],
      ["Tokens", ""], ["Time", ""]], runs.map(runRow)));
    const box = byId("warnings");
    if (!runs.length) {
      box.replaceChildren(make("p", "note",
        "No training run has written metrics yet."));
      return;
    }
    const shown = make("table", "plain", ...table([["Run", ""],
      ["Kind", "word"], ["When", "word"], ["What", "word"]],
    warnings.map((warning) => {
      const run = runs.find((other) => other.run === warning.run);
      const name = make("th", "", `${run.label}, seed ${run.seed}`);
      name.scope = "row";
      return make("tr", "", name, make("td", "word name",
        warning.kind.replaceAll("_", " ")),
      make("td", "word name", warning.when),
      make("td", "word text", warning.text));
    })));
    const scroll = make("div", "scroll", shown);
    scroll.tabIndex = 0;
    scroll.role = "region";
    scroll.ariaLabel = "Warnings";
    box.replaceChildren(make("h3", "", "Health"),
      warnings.length ? scroll : make("p", "note", "No warning."));
  }

  const MAIN = ["eval/accuracy", "reward/mean", "reward/accuracy",
    "reward/format_whole", "loss", "gradient_norm", "clip_fraction_low",
    "clip_fraction_high", "rollout/entropy", "mismatch/abs_log_prob_max",
    "groups/live_fraction", "retrieval/reward", "rollout/retrieved_fraction",
    "rollout/retrievals_missed", "rollout/tool_failures",
    "rollout/generated_tokens"];

  function metricGroups(names, pattern) {
    const words = pattern.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = names.filter((name) =>
      words.every((word) => name.toLowerCase().includes(word)));
    if (words.length) return [[`“${pattern}”`, kept]];
    const groups = new Map([["Overview",
      MAIN.filter((name) => kept.includes(name))]]);
    for (const name of kept) {
      const group = name.includes("/") ? name.split("/")[0] : "update";
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(name);
    }
    return [...groups].filter(([, members]) => members.length);
  }

  const open = new Set(["Overview"]);

  function showCharts() {
    const at = place();
    const box = byId("charts");
    const tasks = [...new Set(overview.runs.map((run) => run.task))];
    const task = tasks.includes(at.curves_of) ? at.curves_of : tasks[0];
    const runs = overview.runs.filter((run) =>
      run.task === task && !hiddenMethods.has(run.method));
    showChartFilters(tasks, task, at);
    const groups = metricGroups(overview.metrics, at.metric || "");
    box.replaceChildren(...groups.map(([name, members]) => {
      const charts = make("div", "charts");
      const node = make("details", "",
        make("summary", "", `${name} `, make("small", "",
          `${members.length}`)), charts);
      node.open = open.has(name) || Boolean(at.metric);
      const fill = () => fillCharts(charts, members, runs, at.x || "update");
      if (node.open) fill();
      node.addEventListener("toggle", () => {
        if (node.open === open.has(name)) return;
        if (node.open) {
          open.add(name);
          fill();
        } else open.delete(name);
      });
      return node;
    }));
  }

  function choice(name, values, value, change, text = (v) => v) {
    const select = make("select", "", ...values.map((v) =>
      new Option(text(v), v)));
    select.value = has(value) ? value : "";
    select.addEventListener("change", () => change(select.value));
    return make("label", "", name, select);
  }

  const X_AXES = { update: "updates", seconds: "seconds of training",
    generated_tokens: "generated tokens" };

  function showChartFilters(tasks, task, at) {
    const box = byId("chart-filters");
    if (!box.contains(document.activeElement)) {
      const metric = make("input", "");
      metric.type = "search";
      metric.value = at.metric || "";
      metric.placeholder = "all";
      metric.addEventListener("input", () =>
        go({ metric: metric.value }, { instead: true }));
      box.replaceChildren(
        choice("Over", Object.keys(X_AXES), at.x || "update",
          (x) => go({ x }, { instead: true }), (x) => X_AXES[x]),
        make("label", "", "Metrics named", metric));
      if (tasks.length > 1) {
        box.append(choice("Task", tasks, task,
          (value) => go({ curves_of: value }, { instead: true })));
      }
    }
    const methods = new Map(overview.runs.filter((run) => run.task === task)
      .map((run) => [run.method, run]));
    byId("legend").replaceChildren(...[...methods.values()].map((run) => {
      const button = coloured(make("button", "", make("i", "mark-line"),
        run.label), run);
      button.ariaPressed = String(!hiddenMethods.has(run.method));
      button.title = "Show or hide";
      button.addEventListener("click", () => {
        if (!hiddenMethods.delete(run.method)) hiddenMethods.add(run.method);
        showCharts();
      });
      return make("li", "", button);
    }));
  }

  async function fillCharts(box, names, runs, x) {
    const curves = await source.curves(x, names);
    box.replaceChildren(...names.map((name) =>
      chart(name, curves[name] || {}, runs, x)));
  }

  const SVG = "http://www.w3.org/2000/svg";
  function draw(tag, attributes, text) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) {
      node.setAttribute(name, value);
    }
    if (has(text)) node.textContent = text;
    return node;
  }

  function ticks(low, high, count) {
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= raw);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step;
      k += 1) found.push(k * step);
    return found;
  }

  function short(value) {
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size >= 1e9) return `${Number((value / 1e9).toPrecision(3))} G`;
    if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))} M`;
    if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))} k`;
    if (size < 1e-3) return value.toExponential(1).replace("-", "−");
    return String(Number(value.toPrecision(3))).replace("-", "−");
  }

  // A thin line a seed; a bold one for their mean, where all have the update.
  function linesOf(curves, runs) {
    const lines = [];
    for (const method of new Set(runs.map((run) => run.method))) {
      const own = runs.filter((run) => run.method === method &&
        curves[run.run]);
      for (const run of own) {
        lines.push({ run, name: `${run.label}, seed ${run.seed}`,
          points: curves[run.run], bold: own.length === 1 });
      }
      if (own.length > 1) {
        const values = new Map();
        for (const run of own) {
          const [xs, ys] = curves[run.run];
          xs.forEach((x, i) => values.set(x, [...values.get(x) || [], ys[i]]));
        }
        const shared = [...values].filter(([, ys]) => ys.length === own.length)
          .sort(([a], [b]) => a - b);
        if (shared.length > 1) {
          lines.push({ run: own[0], name: `${own[0].label}, mean`,
            bold: true, points: [shared.map(([x]) => x), shared.map(([, ys]) =>
              ys.reduce((a, b) => a + b) / ys.length)] });
        } else lines.slice(-own.length).forEach((line) => { line.bold = true; });
      }
    }
    return lines;
  }

  function chart(name, curves, runs, x) {
    const lines = linesOf(curves, runs);
    const figure = make("figure", "", make("figcaption", "",
      name.replaceAll("_", " ")));
    const all = lines.flatMap(({ points: [xs, ys] }) =>
      xs.map((value, i) => [value, ys[i]]));
    if (!all.length) {
      figure.append(make("small", "", "no values"));
      return figure;
    }
    const range = (values) => [values.reduce((a, b) => Math.min(a, b)),
      values.reduce((a, b) => Math.max(a, b))];
    const [x0, x1] = range(all.map(([value]) => value));
    let [y0, y1] = range(all.map(([, value]) => value));
    const spare = y1 > y0 ? (y1 - y0) * 0.05 : Math.abs(y0) * 0.1 || 1;
    [y0, y1] = [y0 >= 0 && y0 < spare * 2 ? 0 : y0 - spare, y1 + spare];
    const [W, H, L, R, T, B] = [340, 190, 46, 10, 8, 24];
    const px = (v) => L + (x1 > x0 ? (v - x0) / (x1 - x0) : 0.5) * (W - L - R);
    const py = (v) => H - B - (v - y0) / (y1 - y0) * (H - T - B);
    const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart",
      role: "img", "aria-label": `${name} over ${X_AXES[x]}` });
    for (const value of ticks(y0, y1, 5)) {
      svg.append(draw("line", { class: "grid", x1: L, x2: W - R,
        y1: py(value), y2: py(value) }), draw("text", { x: L - 6,
        y: py(value) + 4, "text-anchor": "end" }, short(value)));
    }
    for (const value of x1 > x0 ? ticks(x0, x1, 4) : [x0]) {
      svg.append(draw("text", { x: px(value), y: H - 6,
        "text-anchor": "middle" }, short(value)));
    }
    for (const { run, points: [xs, ys], bold } of lines) {
      const kind = bold ? "bold" : "seed";
      const node = xs.length > 1 ? draw("polyline", { class: kind,
        points: xs.map((v, i) => `${px(v).toFixed(1)},${py(ys[i]).toFixed(1)}`)
          .join(" ") }) : draw("circle", { class: "mark", r: 3.5,
        cx: px(xs[0]), cy: py(ys[0]) });
      svg.append(coloured(node, run));
    }
    const output = make("output", "", "");
    const at = draw("line", { class: "at", y1: T, y2: H - B, x1: -9, x2: -9 });
    svg.append(at);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const wanted = (event.clientX - box.left) / box.width * W;
      const [value] = all.reduce((best, point) => Math.abs(px(point[0]) -
        wanted) < Math.abs(px(best[0]) - wanted) ? point : best);
      at.setAttribute("x1", px(value));
      at.setAttribute("x2", px(value));
      const known = lines.filter((line) => line.bold).flatMap((line) => {
        const i = line.points[0].indexOf(value);
        return i < 0 ? [] : [`${line.run.label} ${short(line.points[1][i])}`];
      });
      output.textContent = `${short(value)}: ${known.join(", ")}`;
    });
    svg.addEventListener("pointerleave", () => {
      output.textContent = "";
      at.setAttribute("x1", -9);
      at.setAttribute("x2", -9);
    });
    figure.append(svg, output);
    return figure;
  }

  // The list of trajectories.

  let state = { trajectories: 0, choices: {}, troubles: [] };
  let listed = { filters: null, rows: [], count: 0, total: 0 };
  const list = byId("list");
  const NAMES = { task: "Task", method: "Method", seed: "Seed",
    reward_class: "Reward", finish: "Finish", status: "Format",
    origin: "Written by" };
  const CLASSES = { right: "right", partly: "partly right", wrong: "wrong",
    broken: "broken format" };
  const TRUTHS = { hybrid: ["Rollout", "hybrid", "plain"],
    retrieved: ["Retrieved", "a step", "nothing"],
    tool_error: ["Tools", "an error", "no error"] };

  function showFilters(at) {
    const box = byId("filters");
    if (box.contains(document.activeElement)) return;
    const set = (name) => (value) => go({ [name]: value, open: "" });
    const texts = { method: labelOf, reward_class: (v) => CLASSES[v] || v };
    const parts = Object.entries(NAMES).flatMap(([name, title]) => {
      const values = state.choices[name] || [];
      if (values.length < 2 && !at[name]) return [];
      const text = texts[name] || ((v) => String(v).replaceAll("_", " "));
      return [choice(title, ["", ...values], at[name] || "", set(name),
        (v) => v === "" ? "all" : text(v))];
    });
    for (const [name, [title, yes, no]] of Object.entries(TRUTHS)) {
      parts.push(choice(title, ["", "1", "0"], at[name] || "", set(name),
        (v) => ({ "": "all", 1: yes, 0: no })[v]));
    }
    const updates = make("input", "");
    updates.value = at.first_update === at.last_update
      ? at.first_update || "" : `${at.first_update || ""}-${at.last_update || ""}`;
    const known = state.choices.at_update || [];
    updates.placeholder = known.length > 1
      ? `${known[0]}-${known[known.length - 1]}` : "all";
    updates.inputMode = "numeric";
    updates.addEventListener("change", () => {
      const match = updates.value.trim().match(/^(\d*)(\s*[-–]\s*(\d*))?$/);
      updates.ariaInvalid = String(!match);
      if (!match) return;
      const [, first, range, last] = match;
      updates.blur();
      go({ first_update: first, last_update: range ? last : first, open: "" });
    });
    parts.push(make("label", "", "Updates", updates));
    for (const name of ["run", "query_id"]) {
      if (!at[name]) continue;
      const chip = make("button", "chip", `${at[name]} ✕`);
      chip.ariaLabel = `No longer only ${at[name]}`;
      chip.addEventListener("click", () => go({ [name]: "" }));
      parts.push(chip);
    }
    if (FILTERS.some((name) => at[name])) {
      const clear = make("button", "chip", "Clear all");
      clear.addEventListener("click", () => go(
        Object.fromEntries(FILTERS.map((name) => [name, ""]))));
      parts.push(clear);
    }
    box.replaceChildren(...parts);
    const number_set = FILTERS.filter((n) => n !== "text" && at[n]).length;
    byId("more-filters").querySelector("summary").textContent =
      number_set ? `Filters (${number_set})` : "Filters";
  }

  async function load(filters, after) {
    const total = state.trajectories;
    try {
      const { rows, count } = await source.list(filters, after);
      if (JSON.stringify(filters) !== JSON.stringify(filtersOf(place()))) return;
      listed = { filters, count, total,
        rows: after ? [...listed.rows, ...rows] : rows };
      showList();
    } catch (error) {
      listed = { filters, rows: [], count: 0, total };
      showList();
      byId("found").replaceChildren(make("span", "trouble", error.message));
    }
  }

  const stripOf = (row) => strip(row.strip.split(" ").filter(Boolean)
    .map((part) => ({ kind: KINDS[part[0]], tokens: Number(part.slice(1)) })));

  const groupOf = (row) => `${row.run} ${row.at_update} ${row.query_id}`;

  function itemOf(row) {
    const item = make("button", "item", make("span", "", "#" + row.number),
      make("span", row.reward_class, number(row.score)), stripOf(row),
      make("span", "flag", row.tool_errors ? "!" : ""));
    item.dataset.key = row.key;
    item.title = [row.hybrid ? "hybrid" : "", CLASSES[row.reward_class],
      `finish: ${row.finish}`, `${row.tokens} tokens`,
      row.retrieved ? `${row.retrieved} retrieved` : "",
      row.tool_errors ? `${row.tool_errors} tool errors` : ""]
      .filter(Boolean).join(", ");
    item.ariaLabel = `${row.number}, reward ${number(row.score)}, ${item.title}`;
    item.addEventListener("click", () => go({ open: row.key }));
    return item;
  }

  function showList() {
    const at = place();
    const nodes = [];
    let group = null;
    for (const row of listed.rows) {
      if (groupOf(row) !== group) {
        group = groupOf(row);
        nodes.push(make("h3", "", make("b", "", row.question),
          `${row.task} · ${labelOf(row.method)} · seed ${row.seed}` +
          ` · update ${row.at_update}`));
      }
      nodes.push(itemOf(row));
    }
    const left = listed.count - listed.rows.length;
    if (left > 0 && source.live) {
      const more = make("button", "more", `Show more (${large(left)} left)`);
      more.addEventListener("click", () => load(listed.filters,
        listed.rows[listed.rows.length - 1].key));
      nodes.push(more);
    }
    if (!nodes.length) {
      nodes.push(make("div", "empty", state.trajectories
        ? "No trajectory fits these filters."
        : "No training run has written trajectories yet."));
    }
    list.replaceChildren(...nodes);
    byId("found").textContent = `${large(listed.count)} trajectories`;
    markOpen(at);
  }

  function markOpen(at) {
    for (const item of list.querySelectorAll(".item")) {
      const current = item.dataset.key === at.open;
      item.ariaCurrent = String(current || item.dataset.key === at.beside);
      if (current) item.scrollIntoView({ block: "nearest" });
    }
  }

  function offerNew() {
    const added = state.trajectories - listed.total;
    if (!added || !listed.filters) return;
    if (list.scrollTop === 0 && listed.rows.length <= 200) {
      load(listed.filters);
      return;
    }
    const button = make("button", "", `${large(Math.abs(added))} new`);
    button.addEventListener("click", () => {
      list.scrollTop = 0;
      load(listed.filters);
    });
    byId("found").replaceChildren(
      `${large(listed.count)} trajectories `, button);
  }

  // One trajectory, or two side by side.

  const COLOURS = { "": "kind", entropy: "entropy",
    log_prob: "sampler's log-prob", trainer_log_prob: "trainer's log-prob",
    gap: "log-prob gap", advantage: "advantage" };
  // The gap is the trainer's log-prob less the sampler's. Those that have two
  // sides of 0:
  const SIGNED = ["gap", "advantage"];
  const DIGITS = { gap: 5 };
  let shown = [];

  async function showOpen(at) {
    const keys = [at.beside, at.open].filter(Boolean);
    document.body.classList.toggle("opened", Boolean(at.open));
    const box = byId("shown");
    if (!keys.length) {
      shown = [];
      box.replaceChildren(make("article", "", make("p", "empty",
        "Choose a trajectory: j and k move, / searches.")));
      return;
    }
    const nodes = await Promise.all(keys.map(async (key) => {
      const known = shown.find((one) => one.key === key);
      if (known) return known;
      try {
        return { key, content: await source.open(key) };
      } catch (error) {
        return { key, error };
      }
    }));
    const now = place();
    if (now.open !== at.open || now.beside !== at.beside) return;
    shown = nodes;
    const contents = shown.map(({ content }) => content).filter(has);
    const parting = contents.length === 2 ? partingOf(...contents) : -1;
    box.replaceChildren(...shown.map((one) => one.error
      ? make("article", "", make("p", "trouble", one.error.message))
      : article(one, at, contents, parting)));
  }

  // The first step in which two trajectories differ.
  function partingOf(a, b) {
    const same = (i) => a.steps[i] && b.steps[i] &&
      a.steps[i].kind === b.steps[i].kind &&
      a.steps[i].text === b.steps[i].text;
    let i = 0;
    while (same(i)) i += 1;
    return i;
  }

  const meta = (row) => `${row.task} · ${labelOf(row.method)} · seed ` +
    `${row.seed} · update ${row.at_update} · #${row.number} · ${row.query_id}`;

  function article({ key, content }, at, contents, parting) {
    const { row } = content;
    const node = make("article", "", make("h3", "", row.question),
      make("p", "meta", meta(row)), toolbar(key, content, at, contents),
      factsOf(content));
    node.tabIndex = 0;
    node.ariaLabel = `Trajectory ${row.number} of ${row.query_id}, update ` +
      `${row.at_update}, ${labelOf(row.method)}`;
    if (!content.whole) {
      const bad = content.bad_calls.map((call) =>
        `${call.tool || "a call"}: ${call.status}`);
      node.append(make("p", "trouble", "The format is broken: " +
        [content.status.replaceAll("_", " "), ...bad].join("; ")));
    }
    node.append(make("details", "", make("summary", "", "Prompt"),
      tagged(content.prompt)));
    const highest = Math.max(0.01, ...contents.flatMap((one) =>
      one.steps.map((step) => step.entropy || 0)));
    const scale = at.colour ? scaleOf(at.colour, contents) : null;
    for (const [i, step] of content.steps.entries()) {
      if (i === parting && i > 0) {
        node.append(make("p", "parting", "The two differ from here on"));
      }
      const part = stepNode(step, highest);
      if (scale && step.kind !== "missed") heat(part, step, content, scale);
      if (step.kind === "retrieved" && source.key) {
        for (const place of part.querySelectorAll("[data-trace]")) {
          place.append(keyButton(row.run, place));
        }
      }
      node.append(part);
    }
    mark(node, wordsOf(at.text || ""));
    return node;
  }

  function factsOf(content) {
    const { row } = content;
    const parts = Object.entries(content.parts).map(([name, value]) =>
      fact(name.replaceAll("_", " "), typeof value === "number"
        ? number(value) : String(value)));
    return make("div", "facts",
      fact("reward", number(content.reward), content.class), ...parts,
      fact("answer", content.answer || "none"),
      fact("ground truth", row.truth),
      fact("advantage", number(content.advantage)),
      fact("finish", content.finish.replaceAll("_", " ")),
      fact("format", content.status.replaceAll("_", " ")),
      fact("rollout", content.origin),
      content.hybrid ? fact("retrieval reward", number(content.z, 3)) : null,
      content.hybrid ? fact("retrieved tokens",
        number(100 * content.retrieved, 0) + " %") : null,
      fact("policy", content.version + " updates"),
      has(content.buffer_version) ? fact("buffer",
        "version " + content.buffer_version) : null,
      has(content.parent) ? fact("forked from",
        `#${content.parent} after ${content.shared_steps} steps`) : null,
      content.left_out ? fact("left out", "yes", "warn") : null);
  }

  function toolbar(key, content, at, contents) {
    const second = key === at.beside;
    const bar = make("div", "tools");
    const back = make("button", "back", "← List");
    back.addEventListener("click", () => go({ open: "", beside: "" }));
    bar.append(back);
    const link = make("a", "", "Link");
    link.href = address({ open: key, beside: "" });
    bar.append(link);
    const only = make("button", "", "Only this question");
    only.addEventListener("click", () => go({ ...Object.fromEntries(
      FILTERS.map((name) => [name, ""])), query_id: content.row.query_id,
    task: content.row.task }));
    bar.append(only);
    if (!second) {
      bar.append(besideChoice(content, at), choice("", Object.keys(COLOURS),
        at.colour || "", (colour) => go({ colour }, { instead: true }),
        (v) => `Colour by ${COLOURS[v]}`).firstElementChild);
      bar.querySelectorAll("select")[0].ariaLabel = "Beside";
      bar.querySelectorAll("select")[1].ariaLabel = "Colour by";
      if (at.colour) bar.append(scaleNode(scaleOf(at.colour, contents)));
    }
    const close = make("button", "close", "✕");
    close.ariaLabel = "Close";
    close.addEventListener("click", () => go(second ? { beside: "" }
      : { open: at.beside, beside: "" }));
    bar.append(close);
    return bar;
  }

  function besideChoice(content, at) {
    const select = make("select", "", new Option("Beside: none", ""));
    const groups = new Map();
    for (const row of content.siblings) {
      const name = `${labelOf(row.method)}, seed ${row.seed}, update ` +
        `${row.at_update}`;
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(row);
    }
    for (const [name, rows] of groups) {
      const group = make("optgroup", "");
      group.label = name;
      group.append(...rows.map((row) => new Option(
        `#${row.number}: ${number(row.score)}, update ${row.at_update}`,
        row.key)));
      select.append(group);
    }
    select.value = at.beside || "";
    if (select.selectedIndex < 0) select.selectedIndex = 0;
    select.addEventListener("change", () => go({ beside: select.value }));
    return select;
  }

  // A figure of each token of a step, or none where the log has none.
  function figuresOf(name, step, content) {
    const { each } = step;
    if (!each) return null;
    if (name === "advantage") {
      return each.advantage || each.lengths.map(() => content.advantage);
    }
    if (name !== "gap") return each[name];
    if (!each.log_prob || !each.trainer_log_prob) return null;
    return each.trainer_log_prob.map((value, i) =>
      has(value) ? value - each.log_prob[i] : null);
  }

  // The same of a whole step.
  const meanOf = (name, step, content) => step.kind !== "policy" ? null
    : name === "advantage" ? content.advantage : step[name];

  // What the lightest and the strongest colour on the page stand for.
  function scaleOf(name, contents) {
    const ofSteps = (of) => contents.flatMap((content) =>
      content.steps.map((step) => of(name, step, content)));
    const each = ofSteps(figuresOf).filter(has);
    const tokens = each.length > 0;
    const values = (tokens ? each.flat() : ofSteps(meanOf)).filter(has);
    const least = values.reduce((a, b) => Math.min(a, b), Infinity);
    const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
    const ends = !values.length ? [0, 0]
      : SIGNED.includes(name) ? [0, Math.max(Math.abs(least), Math.abs(most))]
        : name === "entropy" ? [least, most] : [most, least];
    return { name, tokens, known: values.length > 0, cold: ends[0],
      hot: ends[1] };
  }

  function scaleNode({ name, tokens, known, cold, hot }) {
    if (!known) return make("span", "scale", "not in the log");
    const of = tokens ? "of a token" : "mean of a step";
    const unit = name === "entropy" ? " nats" : "";
    const low = SIGNED.includes(name)
      ? [number(-hot, DIGITS[name]), make("i", "below"), "0"]
      : [number(cold, DIGITS[name])];
    return make("span", "scale", ...low, make("i", ""),
      `${number(hot, DIGITS[name])}${unit}, ${of}`);
  }

  function paint(node, value, { cold, hot }) {
    node.classList.add(has(value) ? "heated" : "cold");
    node.classList.toggle("below", has(value) && hot > 0 && value < 0);
    const part = has(value) && hot !== cold
      ? (Math.abs(value) - Math.abs(cold)) / (Math.abs(hot) - Math.abs(cold))
      : 0;
    node.style.setProperty("--part", String(part));
  }

  function heat(part, step, content, scale) {
    const figures = figuresOf(scale.name, step, content);
    if (!figures) {
      paint(part, scale.tokens ? null : meanOf(scale.name, step, content),
        scale);
      return;
    }
    part.classList.add("cold");
    const letters = [...step.text];
    let end = 0;
    const tokens = step.each.lengths.map((length, i) => {
      const token = make("span", "token",
        letters.slice(end, end += length).join(""));
      token.title = Object.keys(COLOURS).filter(Boolean).map((name) => {
        const values = figuresOf(name, step, content);
        return values && has(values[i])
          ? `${COLOURS[name]} ${number(values[i], DIGITS[name] || 3)}` : null;
      }).filter(has).join(" · ");
      paint(token, figures[i], scale);
      return token;
    });
    part.querySelector("pre").replaceChildren(...tokens);
  }

  // Where the text of a trace and what it is found by can be asked for.
  function keyButton(run, place) {
    const button = make("button", "", "Key");
    const { trace } = place.dataset;
    button.title = "What the step is found by";
    button.addEventListener("click", async () => {
      button.disabled = true;
      const found = await source.key(run, trace);
      const box = make("div", "key");
      if (found) {
        box.append(`Step ${found.step_index} of ${found.query_id}. Its key, ` +
          "question and history before it:", make("pre", "", found.key));
        if (place.matches("li")) {
          box.append("The step:", make("pre", "", found.step));
        }
      } else box.append(`The task's buffer has no trace ${trace}.`);
      if (place.matches("li")) place.append(box);
      else place.after(box);
    });
    return button;
  }

  function mark(node, words) {
    if (!words.length) return;
    const escaped = words.map((word) =>
      word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/\s+/g, "\\s+"));
    const pattern = new RegExp(`(${escaped.join("|")})`, "giu");
    const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
    const texts = [];
    while (walker.nextNode()) {
      if (walker.currentNode.parentElement.closest("pre, h3")) {
        texts.push(walker.currentNode);
      }
    }
    for (const text of texts) {
      const parts = text.data.split(pattern);
      if (parts.length < 2) continue;
      text.replaceWith(...parts.map((part, i) =>
        i % 2 ? make("mark", "", part) : part));
    }
  }

  // Keys.

  function move(by) {
    const items = [...list.querySelectorAll(".item")];
    const now = items.findIndex((item) => item.dataset.key === place().open);
    const next = items[now < 0 ? 0 : now + by];
    if (next) {
      if (list.contains(document.activeElement)) next.focus();
      go({ open: next.dataset.key }, { instead: true });
    } else if (by > 0) {
      const more = list.querySelector(".more");
      if (more) more.click();
    }
  }

  const onTrajectories = {
    j: () => move(1),
    k: () => move(-1),
    ArrowDown: () => move(1),
    ArrowUp: () => move(-1),
    Enter: () => {
      const { open: key } = place();
      if (key) byId("shown").lastElementChild.focus();
      else move(1);
    },
    "/": () => byId("text").focus(),
    b: () => {
      const at = place();
      if (at.open) go({ beside: at.beside === at.open ? "" : at.open });
    },
    c: () => {
      const names = Object.keys(COLOURS);
      const now = names.indexOf(place().colour || "");
      go({ colour: names[(now + 1) % names.length] }, { instead: true });
    },
    Escape: () => {
      const at = place();
      if (at.beside) go({ beside: "" });
      else if (at.open) go({ open: "" });
      else if (at.text) go({ text: "" });
    },
  };
  const everywhere = {
    1: () => go({ tab: "runs" }),
    2: () => go({ tab: "trajectories" }),
    "?": () => byId("help").showModal(),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (byId("help").open) return;
    const { target, key } = event;
    if (target.matches("input")) {
      if (key === "Escape" || (key === "Enter" && target.id === "text")) {
        event.preventDefault();
        target.blur();
        if (key === "Enter") move(1);
      }
      return;
    }
    // Arrows belong to what has the focus, but for the list.
    const arrow = key.startsWith("Arrow");
    if (arrow && !list.contains(target) && target !== document.body) return;
    if (target.matches("select")) return;
    if (key === "Enter" && target.matches("button, a, summary")) return;
    const tab = place().tab === "trajectories" ? onTrajectories : {};
    const action = tab[key] || everywhere[key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  let typing = 0;
  byId("text").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() =>
      go({ text: byId("text").value, open: "" }, { instead: true }), 200);
  });
  byId("keys").addEventListener("click", () => byId("help").showModal());
  list.addEventListener("scroll", () => {
    const more = list.querySelector(".more");
    if (more && !more.disabled && list.scrollTop + list.clientHeight >
      list.scrollHeight - 600) {
      more.disabled = true;
      more.click();
    }
  });

  // What the address says, and what is new.

  async function render() {
    const at = place();
    for (const tab of ["runs", "trajectories"]) {
      byId(tab).hidden = at.tab !== tab;
      byId(`to-${tab}`).ariaCurrent = at.tab === tab ? "page" : null;
    }
    byId("to-runs").href = address({ tab: "runs" });
    byId("to-trajectories").href = address({ tab: "trajectories" });
    if (at.tab === "runs") {
      document.body.classList.remove("opened");
      showOverview();
      showCharts();
      return;
    }
    if (document.activeElement !== byId("text")) {
      byId("text").value = at.text || "";
    }
    showFilters(at);
    const filters = filtersOf(at);
    const same = JSON.stringify(filters) === JSON.stringify(listed.filters);
    await Promise.all([showOpen(at), same ? markOpen(at) : load(filters)]);
  }

  function showState() {
    const node = byId("state");
    const { read_bytes: read, log_bytes: size, trajectories } = state;
    const part = size > read ? `, ${Math.floor(100 * read / size)} % indexed`
      : "";
    const of = state.total > trajectories ? ` of ${large(state.total)}` : "";
    node.textContent = `${large(trajectories)}${of} trajectories${part}`;
    node.classList.toggle("live", source.live &&
      overview.runs.some((run) => !run.finished));
    for (const text of state.troubles) {
      node.append(make("span", "trouble", ` ${text}`));
    }
  }

  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

  async function refreshState() {
    const before = state;
    state = await source.state();
    if (same(before, state)) return;
    showState();
    const at = place();
    if (at.tab !== "trajectories") return;
    if (!same(before.choices, state.choices)) showFilters(at);
    offerNew();
  }

  async function refreshRuns() {
    const before = overview;
    overview = await source.runs();
    if (same(before, overview)) return;
    showState();
    const at = place();
    if (at.tab === "runs") {
      showOverview();
      if (before.bytes !== overview.bytes) showCharts();
    } else if (!same(before.runs.map((r) => r.label),
      overview.runs.map((r) => r.label))) {
      // Labels of methods have come.
      showFilters(at);
      showList();
      showOpen(at);
    }
  }

  async function follow(refresh, milliseconds) {
    try {
      if (!document.hidden) await refresh();
    } catch (error) {
      byId("state").textContent = error instanceof TypeError
        ? "The server does not answer; start it again." : error.message;
      byId("state").classList.remove("live");
      state = { ...state, trajectories: -1 };
    }
    if (source.live) {
      setTimeout(() => follow(refresh, milliseconds), milliseconds);
    }
  }

  byId("more-filters").open = wide.matches;
  addEventListener("hashchange", render);
  render();
  follow(refreshState, 1500);
  follow(refreshRuns, 3000);
})();
