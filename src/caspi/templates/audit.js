"use strict";
// All text comes from transcripts and manifests: it is set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PAGE_ROWS = 50;
const SPEEDS = [0.75, 1, 1.25];
const WORD_MARGIN_SECONDS = 0.04;
const CONTROL_CHARACTERS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/gu;

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Control characters would reorder what stands around them; they are shown by their number instead.
function visible(text) {
  const parts = [];
  let last = 0;
  for (const match of text.matchAll(CONTROL_CHARACTERS)) {
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    parts.push(text.slice(last, match.index), make("span", { className: "control-character" }, `U+${code}`));
    last = match.index + match[0].length;
  }
  parts.push(text.slice(last));
  return parts;
}

const shown = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const clock = (seconds) => `${seconds.toFixed(1)} s`;

// ---- one clip: player, waveform, words, transcript ----

let playing = null; // the view whose audio runs, so that only one is heard

function audioAddress(uri) {
  const [head, body] = uri.split(",", 2);
  const bytes = Uint8Array.from(atob(body), (character) => character.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: head.slice(5).split(";")[0] }));
}

function scoreRange() {
  const scores = Object.values(data.clips).flatMap((clip) => clip.words.map((word) => word[4])).sort((a, b) => a - b);
  const at = (fraction) => scores[Math.floor(fraction * (scores.length - 1))] ?? 0;
  return [at(0.05), at(0.95)];
}
const [lowScore, highScore] = scoreRange();

function scoreColor(score) {
  const share = Math.min(1, Math.max(0, (score - lowScore) / (highScore - lowScore || 1)));
  const color = share < 0.5 ? "var(--low)" : "var(--high)";
  return `color-mix(in srgb, ${color} ${Math.round(12 + 76 * Math.abs(share - 0.5))}%, transparent)`;
}

class ClipView {
  constructor(index, blind) {
    this.index = index;
    this.blind = blind;
    this.clip = data.clips[index];
    this.seconds = data.seconds[index];
    this.stopAt = this.loopFrom = null;
    this.element = make("div", { className: "clip" });
    if (this.clip.audio) this.addPlayer();
    if (this.clip.note) this.element.append(make("p", { className: "soft" }, `No audio: ${this.clip.note}.`));
    if (this.clip.peaks) this.addTimeline();
    this.addTranscript();
  }

  addPlayer() {
    this.address = audioAddress(this.clip.audio);
    this.audio = make("audio", { controls: true, preload: "auto", src: this.address, "aria-label": "Clip" });
    const name = this.blind ? "speed-review" : "speed";
    const speeds = SPEEDS.map((speed) => {
      const input = make("input", { type: "radio", name, checked: speed === 1 });
      input.addEventListener("change", () => { this.audio.playbackRate = speed; });
      return make("label", {}, input, ` ${speed}×`);
    });
    const controls = make("div", { className: "controls" }, make("fieldset", {}, make("legend", {}, "Speed"), ...speeds));
    if (!this.blind) {
      this.loop = make("input", { type: "checkbox" });
      controls.append(make("label", {}, this.loop, " loop the word that was clicked"));
    }
    this.audio.addEventListener("play", () => {
      if (playing && playing !== this) playing.audio.pause();
      playing = this;
      requestAnimationFrame(() => this.follow());
    });
    this.audio.addEventListener("seeked", () => this.follow(false));
    this.audio.addEventListener("timeupdate", () => this.follow(false)); // frames stand still in a hidden tab
    this.audio.addEventListener("error", () => {
      if (!this.audio.getAttribute("src")) return;
      this.element.prepend(make("p", { className: "bad" }, "This browser cannot play Opus in Ogg; use another one."));
    });
    this.element.append(this.audio, controls);
  }

  addTimeline() {
    this.canvas = make("canvas", { role: "img", "aria-label": `Waveform, ${clock(this.seconds)}` });
    this.cursor = make("div", { className: "cursor", hidden: true });
    const strip = make("div", { className: "strip", role: "img", "aria-label": `${this.clip.speech.length} stretches of speech` });
    strip.append(...this.clip.speech.map(([start, end]) => this.placed(make("span"), start, end)));
    this.timeline = make("div", { className: "timeline" }, this.canvas);
    if (!this.blind) {
      for (const [start, end] of this.clip.untranscribed) {
        const title = `${(end - start).toFixed(1)} s of speech without an accepted word`;
        this.timeline.append(this.placed(make("div", { className: "bare", title }), start, end));
      }
      this.timeline.append(this.wordTrack());
    }
    this.timeline.append(strip, this.cursor);
    this.canvas.addEventListener("click", (event) => {
      if (!this.audio) return;
      const box = this.canvas.getBoundingClientRect();
      this.stopAt = this.loopFrom = null;
      this.audio.currentTime = ((event.clientX - box.left) / box.width) * this.seconds;
    });
    const ends = make("div", { className: "axis-text" }, make("span", {}, "0 s"));
    ends.append(make("span", {}, this.blind ? "grey: speech" : "grey: speech; hatched: speech without text; dashed: word not accepted"));
    ends.append(make("span", {}, clock(this.seconds)));
    this.element.append(this.timeline, ends);
    this.resize = new ResizeObserver(() => this.draw());
    this.resize.observe(this.canvas);
  }

  placed(element, start, end) {
    element.style.left = `${(100 * start) / this.seconds}%`;
    element.style.width = `${(100 * Math.max(0, end - start)) / this.seconds}%`;
    return element;
  }

  // One tab stop for all words; arrow keys move along the time axis.
  wordTrack() {
    this.buttons = new Map();
    const track = make("div", { className: "track", role: "toolbar", "aria-label": "Words in time; arrow keys move, Enter plays" });
    this.clip.words.forEach(([from, to, start, end, score, aligned], number) => {
      if (start === null) return;
      const text = this.clip.text.slice(from, to);
      const title = `${text}: ${start.toFixed(2)} to ${end.toFixed(2)} s, score ${score.toFixed(2)}${aligned ? "" : ", not accepted"}`;
      const button = make("button", { type: "button", title, tabIndex: -1, dir: "rtl" }, make("bdi", {}, ...visible(text)));
      button.setAttribute("aria-label", title);
      button.style.background = scoreColor(score);
      button.classList.toggle("unaligned", !aligned);
      button.addEventListener("click", () => this.playWord(number));
      this.buttons.set(number, this.placed(button, start, end));
      track.append(button);
    });
    const order = [...track.children];
    if (order.length) order[0].tabIndex = 0;
    track.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = order[order.indexOf(document.activeElement) + step];
      if (!step || !next) return;
      order.forEach((button) => { button.tabIndex = button === next ? 0 : -1; });
      next.focus();
      event.preventDefault();
    });
    return track;
  }

  addTranscript() {
    const line = make("p", { className: "transcript", dir: "rtl", lang: "he" });
    const { text, words } = this.clip;
    this.spoken = new Map();
    let last = 0;
    if (this.blind) line.append(make("bdi", {}, ...visible(text)));
    else {
      words.forEach(([from, to, start, , , aligned], number) => {
        const word = make("bdi", { className: aligned ? "" : "unaligned" }, ...visible(text.slice(from, to)));
        if (start !== null) word.addEventListener("click", () => this.playWord(number));
        line.append(...visible(text.slice(last, from)), word);
        this.spoken.set(number, word);
        last = to;
      });
      line.append(...visible(text.slice(last)));
    }
    if (!text.trim()) line.append(make("span", { className: "soft", dir: "ltr" }, "(empty transcript)"));
    this.element.append(line);
  }

  playWord(number) {
    if (!this.audio) return;
    const [, , start, end] = this.clip.words[number];
    this.loopFrom = Math.max(0, start - WORD_MARGIN_SECONDS);
    this.stopAt = end + WORD_MARGIN_SECONDS;
    this.audio.currentTime = this.loopFrom;
    this.audio.play();
  }

  // Each frame while it plays: cursor, the word that is heard, the end of a single word.
  follow(again = true) {
    const now = this.audio.currentTime;
    if (this.cursor) {
      this.cursor.hidden = false;
      this.cursor.style.left = `${(100 * now) / this.seconds}%`;
    }
    if (!this.blind && this.buttons) {
      this.clip.words.forEach(([, , start, end], number) => {
        const isNow = start !== null && now >= start && now < end;
        this.buttons.get(number)?.classList.toggle("now", isNow);
        this.spoken.get(number)?.classList.toggle("now", isNow);
      });
    }
    if (this.stopAt !== null && now >= this.stopAt) {
      if (this.loop?.checked) this.audio.currentTime = this.loopFrom;
      else {
        this.audio.pause();
        this.audio.currentTime = this.stopAt;
        this.stopAt = null;
      }
    }
    if (again && !this.audio.paused) requestAnimationFrame(() => this.follow());
  }

  draw() {
    const { width, height } = this.canvas.getBoundingClientRect();
    const scale = window.devicePixelRatio || 1;
    Object.assign(this.canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
    const context = this.canvas.getContext("2d");
    const peaks = Uint8Array.from(atob(this.clip.peaks), (character) => character.charCodeAt(0));
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--soft");
    peaks.forEach((peak, number) => {
      const tall = Math.max(scale, (peak / 255) * this.canvas.height * 0.94);
      const x = (number * this.canvas.width) / peaks.length;
      context.fillRect(x, (this.canvas.height - tall) / 2, Math.max(1, this.canvas.width / peaks.length - scale * 0.4), tall);
    });
  }

  close() {
    if (playing === this) playing = null;
    if (this.audio) {
      this.audio.pause();
      this.audio.removeAttribute("src");
      this.audio.load(); // lets go of the address before it is revoked
      URL.revokeObjectURL(this.address);
    }
    this.resize?.disconnect();
    this.element.remove();
  }
}

// ---- the browser of samples ----

const filters = { order: byId("order"), domain: byId("by-domain"), reason: byId("by-reason"), verdict: byId("by-verdict"), id: byId("by-id"), shown: byId("only-shown") };
let matching = [];
let numListed = PAGE_ROWS;
let opened = null;

function inOrder() {
  const kind = filters.order.value;
  if (kind === "worst") return data.worstFirst;
  if (kind !== "near") return data.lists[kind];
  const measured = data.slack.map((_, index) => index).filter((index) => data.slack[index] !== null);
  return measured.sort((a, b) => Math.abs(data.slack[a]) - Math.abs(data.slack[b]));
}

function applyFilters() {
  const { domain, reason, verdict, id, shown: onlyShown } = filters;
  const wanted = id.value.trim().toLowerCase();
  matching = inOrder().filter((index) =>
    (domain.value === "" || data.domain[index] === Number(domain.value)) &&
    (reason.value === "" || data.reasons[index].includes(Number(reason.value))) &&
    (verdict.value === "" || data.low[index] === Number(verdict.value)) &&
    (wanted === "" || data.id[index].toLowerCase().includes(wanted)) &&
    (!onlyShown.checked || index in data.clips));
  numListed = PAGE_ROWS;
  list();
}

function list() {
  const rows = matching.slice(0, numListed).map((index) => {
    const button = make("button", { type: "button", className: "row" }, make("bdi", {}, ...visible(data.id[index])));
    button.addEventListener("click", () => open(index));
    const row = make("tr", { className: opened?.index === index ? "current" : "" });
    row.dataset.index = index;
    const sign = data.low[index] ? make("span", { className: "bad", title: "flagged" }, "✗") : make("span", { className: "good", title: "passed" }, "✓");
    if (!(index in data.clips)) button.title = "figures only: not among the clips whose waveform this page carries";
    else sign.append(data.clips[index].audio ? " ♪" : " ∿");
    row.append(make("td", {}, button), make("td", {}, shown(data.coverage[index])), make("td", {}, shown(data.speech[index])), make("td", {}, sign));
    return row;
  });
  byId("clips").replaceChildren(...rows);
  byId("count").textContent = `${matching.length.toLocaleString("en")} of ${data.id.length.toLocaleString("en")} clips; ♪ audio, ∿ waveform`;
  byId("more").hidden = numListed >= matching.length;
}

function facts(index) {
  const decoy = data.decoy[index];
  return [
    ["Coverage of the text", shown(data.coverage[index])],
    ["Coverage of the speech", shown(data.speech[index])],
    ["Confidence", shown(data.confidence[index])],
    ["Score, its decoy's", `${shown(data.score[index])}, ${shown(decoy)}`],
    ["Letters per second of speech", shown(data.rate[index], 1)],
    ["Length", clock(data.seconds[index])],
  ];
}

function open(index) {
  opened?.view?.close();
  const chips = data.why[index] ?? ["passed: the text fits the audio"];
  const title = make("h3", {}, make("bdi", {}, ...visible(data.id[index])), " ", make("span", { className: "soft" }, data.domains[data.domain[index]]));
  const marks = make("ul", { className: "chips" }, ...chips.map((text) => make("li", { className: data.low[index] ? "" : "fine" }, ...visible(text))));
  const panel = make("div", { className: "card" }, title, marks);
  opened = { index, view: null };
  if (index in data.clips) {
    opened.view = new ClipView(index, false);
    panel.append(opened.view.element);
    const { decoy_text: decoy } = data.clips[index];
    if (decoy) {
      const text = make("p", { className: "transcript", dir: "rtl", lang: "he" }, make("bdi", {}, ...visible(decoy)));
      const score = make("p", {}, `Score ${shown(data.decoy[index])}; the transcript's is ${shown(data.score[index])}.`);
      panel.append(make("details", {}, make("summary", {}, "The decoy that was aligned beside it"), text, score));
    }
  } else panel.append(make("p", { className: "soft" }, "Words, waveform and audio of this clip are not in this page; --page.max-clips sets how many are."));
  const table = make("dl", { className: "facts" });
  for (const [name, value] of facts(index)) table.append(make("dt", {}, name), make("dd", {}, value));
  panel.append(table);
  byId("detail").replaceChildren(panel);
  for (const row of byId("clips").children) row.classList.toggle("current", Number(row.dataset.index) === index);
  markChosen(index);
}

function markChosen(index) {
  const circle = byId("chosen");
  if (!circle || data.coverage[index] === null || data.speech[index] === null) return;
  const [left, right, floor, top] = data.scatter;
  circle.setAttribute("cx", left + (right - left) * data.coverage[index]);
  circle.setAttribute("cy", floor + (top - floor) * data.speech[index]);
}

function nearestPoint(event) {
  const drawing = byId("scatter").querySelector("svg");
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
  const [left, right, floor, top] = data.scatter;
  let best = null, least = Infinity;
  data.coverage.forEach((coverage, index) => {
    if (coverage === null || data.speech[index] === null) return;
    const distance = (left + (right - left) * coverage - at.x) ** 2 + (floor + (top - floor) * data.speech[index] - at.y) ** 2;
    if (distance < least) [best, least] = [index, distance];
  });
  return best;
}

function startBrowser() {
  data.domains.forEach((name, number) => filters.domain.append(make("option", { value: number }, name)));
  data.reasonNames.forEach((name, number) => filters.reason.append(make("option", { value: number }, name)));
  for (const option of filters.order.options) option.disabled = option.value in data.lists && !data.lists[option.value].length && option.value !== "worst" && option.value !== "near";
  byId("filters").addEventListener("input", applyFilters);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", () => { numListed += PAGE_ROWS; list(); });
  byId("scatter")?.addEventListener("click", (event) => {
    const index = nearestPoint(event);
    if (index === null) return;
    open(index);
    byId("detail").scrollIntoView({ block: "nearest" });
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => opened?.view?.draw());
  applyFilters();
  const first = matching.find((index) => index in data.clips) ?? matching[0];
  if (first !== undefined) open(first);
}

// ---- blind review ----

const review = data.review;
const plan = data.lists.review.filter((index) => data.clips[index].audio);
const KEYS = { 1: "good", 2: "bad", 3: "unsure" };
const STORE = `caspi review ${review.samples_sha256}`;
let labels = {};
let place = 0;
let view = null;
let isKept = true;
let isExported = true;

function load() {
  try {
    labels = JSON.parse(localStorage.getItem(STORE) ?? "{}");
    localStorage.setItem(STORE, JSON.stringify(labels));
  } catch {
    isKept = false;
  }
}

function keep() {
  isExported = false;
  if (!isKept) return;
  try {
    localStorage.setItem(STORE, JSON.stringify(labels));
  } catch {
    isKept = false;
    note();
  }
}

function note() {
  const done = plan.filter((index) => data.id[index] in labels);
  const unsure = done.filter((index) => labels[data.id[index]].verdict === "unsure").length;
  const where = isKept ? "Labels are kept in this browser until you export them." : "This browser keeps nothing when the page is closed: export before you leave.";
  byId("review-note").textContent = plan.length ? `${done.length} of ${plan.length} clips labelled, ${unsure} unsure. ${where}` : "This page carries no clips for review; caspi report audit --embed-audio review writes one that does.";
}

function setVerdict(verdict) {
  const id = data.id[plan[place]];
  labels[id] = { verdict, tags: review.tags.filter((_, number) => byId(`tag-${number}`).checked) };
  keep();
  const next = plan.findIndex((index, number) => number > place && !(data.id[index] in labels));
  const first = plan.findIndex((index) => !(data.id[index] in labels));
  show(next >= 0 ? next : first >= 0 ? first : place);
}

function show(number) {
  view?.close();
  place = Math.min(plan.length - 1, Math.max(0, number));
  const known = labels[data.id[plan[place]]];
  view = new ClipView(plan[place], true);
  byId("review-clip").replaceChildren(view.element);
  byId("review-place").textContent = `Clip ${place + 1} of ${plan.length}${known ? ` (labelled ${known.verdict})` : ""}`;
  byId("review-progress").value = plan.filter((index) => data.id[index] in labels).length;
  review.tags.forEach((tag, position) => { byId(`tag-${position}`).checked = known?.tags.includes(tag) ?? false; });
  for (const [key, verdict] of Object.entries(KEYS)) byId(`answer-${key}`).setAttribute("aria-pressed", String(known?.verdict === verdict));
  note();
  if (byId("play-at-once").checked) view.audio.play().catch(() => {});
}

function press(event) {
  if (byId("review-desk").hidden || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("input[type=search], select, audio")) return;
  const letter = event.key.toLowerCase();
  const tag = letter.length === 1 ? letter.charCodeAt(0) - 97 : -1;
  if (event.key in KEYS) setVerdict(KEYS[event.key]);
  else if (tag >= 0 && tag < review.tags.length) byId(`tag-${tag}`).checked = !byId(`tag-${tag}`).checked;
  else if (event.key === " " && !event.target.matches("button, input, a, summary")) view.audio.paused ? view.audio.play() : view.audio.pause();
  else if (event.key === "ArrowRight" && !event.target.matches("input")) show(place + 1);
  else if (event.key === "ArrowLeft" && !event.target.matches("input")) show(place - 1);
  else return;
  event.preventDefault();
}

function leave() {
  view?.close();
  view = null;
  byId("review-desk").hidden = true;
  document.body.classList.remove("reviewing");
  startButton();
  byId("review-start").querySelector("button").focus();
}

function enter() {
  opened?.view?.audio?.pause();
  document.body.classList.add("reviewing");
  byId("review-start").replaceChildren();
  byId("review-desk").hidden = false;
  const first = plan.findIndex((index) => !(data.id[index] in labels));
  show(first < 0 ? 0 : first);
  byId("answer-1").focus();
}

async function exportLabels() {
  const done = plan.filter((index) => data.id[index] in labels).map((index) => ({ id: data.id[index], ...labels[data.id[index]] }));
  if (!done.length) {
    byId("review-note").textContent = "There is nothing to export yet: label a clip first.";
    return;
  }
  if (!crypto.subtle) {
    byId("review-note").textContent = "This browser cannot seal labels on a page from disk; open the page in Chromium or Firefox.";
    return;
  }
  const sealed = new TextEncoder().encode(JSON.stringify(done.map(({ id, verdict, tags }) => [id, verdict, tags])));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", sealed));
  const hash = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const { format, manifest_sha256, samples_sha256 } = review;
  const file = JSON.stringify({ format, manifest_sha256, samples_sha256, labels: done, labels_sha256: hash }, null, 1);
  const link = make("a", { href: URL.createObjectURL(new Blob([file], { type: "application/json" })), download: "labels.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  isExported = true;
  byId("review-note").textContent = `${done.length} labels exported to labels.json; now run: caspi audit --labels labels.json`;
}

function button(text, act, properties = {}) {
  const made = make("button", { type: "button", ...properties }, ...[text].flat());
  made.addEventListener("click", act);
  return made;
}

function startButton() {
  const some = Object.keys(labels).length > 0;
  byId("review-start").replaceChildren(
    button(some ? "Go on with the review" : "Start the blind review", enter, { className: "main", disabled: !plan.length }), " ",
    button("Export labels.json", exportLabels, { disabled: !plan.length }));
  note();
}

function buildDesk() {
  const answers = Object.entries(KEYS).map(([key, verdict]) =>
    button([make("kbd", {}, key), ` ${verdict}`], () => setVerdict(verdict), { id: `answer-${key}` }));
  const tags = review.tags.map((tag, number) =>
    make("label", {}, make("input", { type: "checkbox", id: `tag-${number}` }), " ", make("kbd", {}, String.fromCharCode(97 + number)), ` ${tag}`));
  byId("review-desk").className = "desk";
  byId("review-desk").append(
    make("p", {}, make("strong", { id: "review-place" }), " ", make("label", { className: "soft" }, make("input", { type: "checkbox", id: "play-at-once", checked: true }), " play at once")),
    make("progress", { id: "review-progress", max: plan.length, value: 0, "aria-label": "Clips labelled" }),
    make("div", { id: "review-clip" }),
    make("fieldset", { className: "tags" }, make("legend", {}, "What is wrong (before the verdict; optional)"), ...tags),
    make("div", { className: "answers" }, ...answers),
    make("p", { className: "controls" }, button("← back", () => show(place - 1)), button("next →", () => show(place + 1)), button("Export labels.json", exportLabels), button("Leave the review", leave)),
    make("p", { className: "soft" }, "Good: the text is what is spoken, apart from spelling. Bad: words are missing, added or wrong. Space plays and pauses."));
}

function startReview() {
  load();
  buildDesk();
  startButton();
  document.addEventListener("keydown", press);
  window.addEventListener("beforeunload", (event) => {
    if (!isKept && !isExported) event.preventDefault();
  });
}

startBrowser();
startReview();
