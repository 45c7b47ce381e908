"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const list = document.getElementById("list");
  const detail = document.getElementById("detail");
  const LIMIT = 400;

  // Text goes into nodes as text, never as markup.
  function make(tag, name, ...children) {
    const node = document.createElement(tag);
    if (name) node.className = name;
    node.append(...children.filter((child) => child !== null));
    return node;
  }
  const has = (value) => value !== null && value !== undefined;
  const number = (value, digits = 2) =>
    has(value) ? value.toFixed(digits).replace("-", "−") : "–";
  const labelOf = (method) => data.labels[method] || method;

  const rows = data.groups.flatMap((group) =>
    group.rollouts.map((rollout) => ({ group, rollout })));
  const uses = (rollout) => rollout.steps.some((s) => s.kind === "retrieved");
  const filters = [
    ["Task", (r) => r.group.task, (v) => v],
    ["Method", (r) => r.group.method, labelOf],
    ["Seed", (r) => r.group.seed, (v) => v],
    ["Update", (r) => r.group.update, (v) => v],
    ["Rollout", (r) => !r.rollout.hybrid ? r.rollout.origin
      : uses(r.rollout) ? "hybrid, retrieved" : "hybrid, nothing retrieved",
    (v) => v],
    ["Reward", (r) => r.rollout.class, (v) => ({ right: "right (F1 = 1)",
      partly: "partly right", wrong: "wrong", broken: "broken format" })[v]],
    ["Finish", (r) => r.rollout.finish, (v) => v],
    ["Question", (r) => r.group.query, (v) => v],
  ].map(([name, value, text]) => ({ name, value, text, select: null }));

  for (const filter of filters) {
    const values = [...new Set(rows.map(filter.value))].sort((a, b) =>
      typeof a === "number" ? a - b : a < b ? -1 : 1);
    filter.values = values;
    filter.select = make("select", "", new Option("all", ""),
      ...values.map((v, i) => new Option(filter.text(v), String(i))));
    filter.select.addEventListener("change", () => show());
    document.getElementById("filters").append(
      make("label", "", filter.name, filter.select));
  }

  function matches(row) {
    return filters.every(({ select, values, value }) =>
      select.value === "" || values[Number(select.value)] === value(row));
  }

  function strip(rollout) {
    const bar = make("span", "strip");
    for (const step of rollout.steps) {
      if (step.kind === "missed") continue;
      const piece = make("i", "k-" + step.kind);
      piece.style.flex = String(Math.max(step.tokens, 1)) + " 1 0";
      bar.append(piece);
    }
    return bar;
  }

  let items = [];
  function show() {
    const found = rows.filter(matches);
    list.replaceChildren();
    items = [];
    let group = null;
    for (const row of found.slice(0, LIMIT)) {
      if (row.group !== group) {
        group = row.group;
        list.append(make("h4", "", make("b", "", group.question),
          `${group.task} · ${labelOf(group.method)} · seed ${group.seed}` +
          ` · update ${group.update}`));
      }
      const item = make("button", "item",
        make("span", "", "#" + row.rollout.index),
        make("span", row.rollout.class, number(row.rollout.reward)),
        strip(row.rollout));
      item.title = `${row.rollout.origin} rollout`;
      item.addEventListener("click", () => open(item, row));
      items.push([item, row]);
      list.append(item);
    }
    if (found.length > LIMIT) {
      list.append(make("div", "empty",
        `${LIMIT} of ${found.length} shown: narrow the filters.`));
    }
    if (items.length) {
      open(...(items.find(([, row]) => uses(row.rollout)) || items[0]));
    } else {
      const text = rows.length ? "No trajectory fits these filters."
        : "No training run has written trajectories yet.";
      list.append(make("div", "empty", text));
      detail.replaceChildren();
    }
  }

  list.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!move) return;
    const now = items.findIndex(([item]) => item.ariaCurrent === "true");
    const next = items[now + move];
    if (next) { event.preventDefault(); next[0].focus(); open(...next); }
  });

  const fact = (name, value, kind) =>
    make("div", "", make("b", "", name), make("span", kind || "", value));

  function tagged(text) {
    const parts = text.split(/(<\/?[a-z]+>|<\|[a-z_]+\|>)/);
    return make("pre", "", ...parts.map((part, i) =>
      i % 2 ? make("span", "tag", part) : part));
  }

  function open(item, { group, rollout }) {
    for (const [other] of items) other.ariaCurrent = String(other === item);
    const facts = make("div", "facts",
      fact("reward", number(rollout.reward), rollout.class),
      fact("answer", rollout.answer || "none"),
      fact("ground truth", group.truth),
      fact("advantage", number(rollout.advantage)),
      fact("finish", rollout.finish),
      fact("format", rollout.status),
      fact("rollout", rollout.origin),
      rollout.hybrid ? fact("retrieval reward", number(rollout.z, 3)) : null,
      rollout.hybrid ? fact("retrieved tokens",
        number(100 * rollout.retrieved, 0) + " %") : null,
      fact("policy", rollout.version + " updates"));
    const highest = Math.max(0.01, ...group.rollouts.flatMap((r) =>
      r.steps.map((step) => step.entropy || 0)));
    const prompt = make("details", "", make("summary", "", "Prompt"),
      tagged(group.prompt));
    detail.replaceChildren(make("h4", "", group.question), facts, prompt,
      ...rollout.steps.map((step) => stepNode(step, highest)));
    detail.scrollTop = 0;
  }

  function stepNode(step, highest) {
    if (step.kind === "missed") {
      const why = { miss: "nothing in the buffer qualified",
        failed: "retrieval failed", no_room: "the step did not fit" };
      return make("div", "missed",
        "Retrieval without a step: " + (why[step.outcome] || step.outcome));
    }
    const head = make("header", "", make("b", "",
      `${step.kind} · step ${step.step}`), `${step.tokens} tokens`);
    const add = (...parts) => head.append(make("span", "", ...parts));
    if (step.kind === "policy") {
      if (has(step.entropy)) {
        const fill = make("i", "");
        fill.style.width = `${100 * step.entropy / highest}%`;
        add(make("span", "bar", fill), `entropy ${number(step.entropy)} nats`);
      }
      if (has(step.log_prob)) add(`log-prob ${number(step.log_prob)}`);
    } else if (step.kind === "observation" && has(step.status)) {
      add(step.tool || "no tool");
      const fine = step.status === "ok";
      add(make("span", fine ? "" : "warn", step.status));
      if (has(step.seconds)) add(`${(1000 * step.seconds).toFixed(0)} ms`);
    } else if (step.kind === "retrieved") {
      if (has(step.source)) add(`from ${step.source}, trace ${step.trace_id}`);
      if (has(step.similarity)) add(`similarity ${number(step.similarity, 3)}`);
      if (has(step.reward)) add(`its reward ${number(step.reward)}`);
      if (has(step.z)) {
        add(`entropy ${number(step.before)} → ${number(step.after)},` +
          ` Z = ${number(step.z, 3)}`);
      }
      if (has(step.effect)) {
        add(`effect on the reward ${step.effect > 0 ? "+" : ""}` +
          `${number(step.effect)}`);
      }
      if (step.answers) add(make("span", "warn", "holds an answer"));
    }
    return make("div", "step k-" + step.kind, head, tagged(step.text));
  }

  // RAPO first: its rollouts are the ones that hold retrieved steps.
  const [, method] = filters;
  if (method.values.includes("rapo")) {
    method.select.value = String(method.values.indexOf("rapo"));
  }
  show();
})();
