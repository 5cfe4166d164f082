"use strict";

const place = (id) => document.getElementById(id);
const [form, field, state, lists, shown] = ["search", "query", "state", "lists", "job"].map(place);
let asking = null; // the request under way: a newer query ends it
let chosen = { side: 0, job: null };

/** An element with text children only: what a job says never becomes markup. */
function make(tag, names = "", ...children) {
  const made = document.createElement(tag);
  if (names) made.className = names;
  made.append(...children);
  return made;
}

async function read(path, options) {
  const reply = await fetch(path, options);
  const said = await reply.json();
  if (!reply.ok) throw new Error(said.message || said.detail || reply.statusText);
  return said;
}

function tell(text, fault = false) {
  state.textContent = text;
  state.classList.toggle("fault", fault);
}

async function rank(query) {
  if (!query.trim()) return;
  if (asking) asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  field.value = query;
  history.replaceState(null, "", `#${new URLSearchParams({ q: query })}`);
  tell("ranking …");
  const started = performance.now();
  try {
    const found = await read(`/ui/rank?${new URLSearchParams({ query })}`, { signal });
    show(found);
    const taken = Math.round(performance.now() - started);
    const count = found.candidates.length;
    const failed = found.sides.filter((side) => side.error).map((side) => side.name);
    const ranked = failed.length ? `not ranked by ${failed.join(" and ")}` : `ranked in ${taken} ms`;
    tell(
      count
        ? `${count} jobs that share a word with the query, ${ranked}`
        : "no job shares a word with the query; the first stage of this page is BM25",
      failed.length > 0,
    );
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message, true);
  }
}

function show(found) {
  shown.hidden = true;
  document.querySelector("main").append(shown); // it may lie in a row that goes
  lists.replaceChildren(...found.sides.map((side, number) => column(found, side, number)));
  const first = lists.querySelector("ol button");
  if (first) choose(first);
}

function column(found, side, number) {
  const made = make("div", "side", make("h2", "", side.name));
  if (side.error) {
    made.append(make("p", "fault", side.error));
    return made;
  }
  if (side.parts.length) made.append(...measured(side.parts));
  const places = new Map(found.candidates.map((job, at) => [job.job_id, at]));
  const list = make("ol");
  side.items.forEach((item, at) => {
    const first = places.get(item.job_id);
    list.append(make("li", "", row(found.candidates[first], item, at, first, number)));
  });
  made.append(list);
  return made;
}

function measured(parts) {
  const sum = (name) => parts.reduce((total, part) => total + part.times_ms[name], 0);
  const [total, prepare, ranker] = ["total", "prepare", "ranker"].map(sum);
  const rest = Math.max(total - prepare - ranker, 0);
  const bar = make("div", "times");
  bar.setAttribute("aria-hidden", "true");
  for (const [name, value] of Object.entries({ prepare, ranker, rest })) {
    const piece = make("i", name);
    piece.style.flexGrow = String(value);
    bar.append(piece);
  }
  const { engine = "", precision = "" } = parts[0].served;
  const ms = (value) => `${value.toFixed(1)} ms`;
  return [
    make("p", "", `engine ${engine.slice(0, 8)} ${precision}`),
    make("p", "", `${ms(total)}: prepare ${ms(prepare)}, ranker ${ms(ranker)}, rest ${ms(rest)}`),
    bar,
  ];
}

function row(job, item, at, first, number) {
  const scored = item.score !== null;
  const moved = first - at;
  const sign = moved > 0 ? `▲${moved}` : moved < 0 ? `▼${-moved}` : "=";
  const where = [job.company, job.location].filter(Boolean).join(" · ");
  const title = make("span", "title", job.title || job.job_id);
  if (where) title.append(make("small", "", where));
  if (item.status !== 0) title.append(make("small", "fault", item.status_text));
  const bar = make("span", "bar", make("i"));
  bar.firstChild.style.width = scored ? `${item.score * 100}%` : "0";
  const button = make(
    "button",
    "",
    make("span", "place", String(at + 1)),
    title,
    make("span", "p", scored ? item.score.toFixed(3) : "–"),
    make("span", "moved", scored ? sign : ""),
    bar,
  );
  button.type = "button";
  button.title = `place ${first + 1} in the first stage`;
  Object.assign(button.dataset, { job: item.job_id, side: number });
  return button;
}

async function choose(button, focus = false) {
  const { job, side } = button.dataset;
  chosen = { job, side: Number(side) };
  for (const one of lists.querySelectorAll("ol button")) {
    one.setAttribute("aria-current", String(one.dataset.job === job));
  }
  if (focus) button.focus();
  // Beside the lists, or on a narrow screen under the chosen row.
  const narrow = matchMedia("(max-width: 60rem)").matches;
  (narrow ? button.parentElement : document.querySelector("main")).append(shown);
  try {
    const found = await read(`/ui/job?${new URLSearchParams({ job_id: job })}`);
    if (chosen.job === job) describe(found, Number(side));
  } catch (error) {
    tell(error.message, true);
  }
}

function describe({ job, sides }, number) {
  const side = sides[Math.min(number, sides.length - 1)];
  const where = [job.company, job.location, job.job_id].filter(Boolean).join(" · ");
  shown.replaceChildren(make("h2", "", job.title || job.job_id), make("p", "soft", where));
  for (const one of sides) {
    const many = sides.length > 1 ? ` of ${one.name}` : "";
    shown.append(
      make("h3", "", `Summary${many}`),
      make("p", "soft", `${one.summary_tokens} of ${one.source_tokens} tokens`),
      make("p", "", one.summary),
    );
  }
  shown.append(make("h3", "", "Full text"));
  if (side) shown.append(make("p", "soft", `marked: what the summary of ${side.name} keeps`));
  shown.append(marked(job.description, side ? side.kept : []));
  shown.hidden = false;
}

function marked(text, spans) {
  // Places count code points, as the server's do.
  const points = Array.from(text);
  const piece = (from, to) => points.slice(from, to).join("");
  const made = make("p");
  let at = 0;
  for (const [from, to] of spans) {
    made.append(piece(at, from), make("mark", "", piece(from, to)));
    at = to;
  }
  made.append(piece(at));
  return made;
}

function move(step) {
  const own = [...lists.querySelectorAll(`ol button[data-side="${chosen.side}"]`)];
  const at = own.findIndex((one) => one.dataset.job === chosen.job);
  const next = own[Math.min(Math.max(at + step, 0), own.length - 1)];
  if (next) choose(next, true);
}

function cross(step) {
  const sides = lists.querySelectorAll(".side").length;
  const side = Math.min(Math.max(chosen.side + step, 0), sides - 1);
  const job = CSS.escape(chosen.job || "");
  const same = lists.querySelector(`ol button[data-side="${side}"][data-job="${job}"]`);
  if (same) choose(same, true);
}

document.addEventListener("keydown", (event) => {
  // With these they are the browser's own, or a word that is still being composed.
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.isComposing) return;
  const typing = document.activeElement === field;
  if (event.key === "/" && !typing) {
    field.focus();
    field.select();
  } else if (event.key === "ArrowDown") move(typing ? 0 : 1);
  else if (event.key === "ArrowUp" && !typing) move(-1);
  else if (event.key === "ArrowLeft" && !typing) cross(-1);
  else if (event.key === "ArrowRight" && !typing) cross(1);
  else return;
  event.preventDefault();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  rank(field.value);
});
lists.addEventListener("click", (event) => {
  const button = event.target.closest("ol button");
  if (button) choose(button);
});

const linked = () => new URLSearchParams(location.hash.slice(1)).get("q") ?? "";
addEventListener("hashchange", () => {
  if (linked() !== field.value) rank(linked());
});

async function start() {
  try {
    const about = await read("/ui/about");
    document.title = `slmrank: ${about.sides.join(" and ")}`;
    tell(`${about.jobs} jobs`);
    place("examples").replaceChildren(
      ...about.examples.map((query) => {
        const button = make("button", "", query);
        button.type = "button";
        button.addEventListener("click", () => rank(query));
        return button;
      }),
    );
    place("plots").hidden = !about.plots.length;
    for (const name of about.plots) {
      const image = make("img");
      Object.assign(image, { src: `/ui/plots/${name}.png`, alt: name, loading: "lazy" });
      place("plots").append(image);
    }
    await rank(linked());
  } catch (error) {
    tell(error.message, true);
  }
}
start();
