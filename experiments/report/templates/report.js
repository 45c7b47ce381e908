{% include "steps.js" %}
(() => {
  const { fact, has, make, number, stepNode, strip, tagged } = Steps;
  const data = JSON.parse(document.getElementById("data").textContent);
  const list = document.getElementById("list");
  const detail = document.getElementById("detail");
  const LIMIT = 400;

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
        strip(row.rollout.steps.filter((s) => s.kind !== "missed")));
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

  // RAPO first: its rollouts are the ones that hold retrieved steps.
  const [, method] = filters;
  if (method.values.includes("rapo")) {
    method.select.value = String(method.values.indexOf("rapo"));
  }
  show();
})();
