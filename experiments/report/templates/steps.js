"use strict";
// How trajectories look, in the report and in the viewer.
const Steps = (() => {
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

  // Kinds and lengths of segments, side by side.
  function strip(segments) {
    const bar = make("span", "strip");
    for (const { kind, tokens } of segments) {
      const piece = make("i", "k-" + kind);
      piece.style.flex = String(Math.max(tokens || 1, 1)) + " 1 0";
      bar.append(piece);
    }
    return bar;
  }

  const fact = (name, value, kind) =>
    make("div", "", make("b", "", name), make("span", kind || "", value));

  function tagged(text) {
    const parts = text.split(/(<\/?[a-z]+>|<\|[a-z_]+\|>)/);
    return make("pre", "", ...parts.map((part, i) =>
      i % 2 ? make("span", "tag", part) : part));
  }

  // The candidates that a retrieval has not chosen.
  function othersOf({ others }) {
    if (!others) return null;
    const items = others.map((one) => {
      const item = make("li", "", `trace ${one.trace_id}, ` +
        `similarity ${number(one.similarity, 3)}, ` +
        `its reward ${number(one.reward)} `);
      item.dataset.trace = one.trace_id;
      return item;
    });
    return make("details", "others", make("summary", "",
      `${others.length} next-best candidates`), make("ol", "", ...items));
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
    if (step.kind === "retrieved" && has(step.trace_id)) {
      head.dataset.trace = step.trace_id;
    }
    return make("div", "step k-" + step.kind, head, othersOf(step),
      tagged(step.text));
  }

  return { fact, has, make, number, stepNode, strip, tagged };
})();
