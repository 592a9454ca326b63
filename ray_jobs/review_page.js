// The review page: keys and buttons in, JSON calls out. Texts of rows are only ever set as text nodes.
"use strict";
const $ = (id) => document.getElementById(id);
const RESERVED = "nuvwxr";
let about = null, row = null, categories = new Set(), refusal = null;

async function call(path, body) {
  const options = body === undefined ? {} :
    { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const reply = await fetch("api/" + path, options);
  const told = await reply.json();
  if (!reply.ok) throw new Error(told.error);
  return told;
}

function node(tag, text, css) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (css) made.className = css;
  return made;
}

// Characters that act instead of showing (controls, direction marks, zero widths) are shown by their code.
const ACTING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/;
function setText(place, text, css) {
  for (const part of text.split(new RegExp("(" + ACTING.source + ")"))) {
    if (part && ACTING.test(part)) {
      place.append(node("span", "U+" + part.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0"), "hidden-char"));
    } else if (part) place.append(css ? node("span", part, css) : document.createTextNode(part));
  }
}

function show(id, visible) { $(id).hidden = !visible; }
function fill(id, text) {
  const place = $(id).querySelector(".text");
  place.replaceChildren();
  show(id, Boolean(text));
  if (text) setText(place, text);
}

function letters(side) {
  const free = [..."abcdefghijklmopqstyz"].filter((letter) => !RESERVED.includes(letter));
  return about.categories[side].map((category, at) => ({ ...category, key: free[at] || "" }));
}

function keyed(key, words) {
  const made = node("button");
  made.type = "button";
  if (key) made.append(node("kbd", key), " ");
  made.append(words);
  return made;
}

function drawProgress(told) {
  Object.assign(about, told);
  const done = about.done.filter(Boolean).length;
  $("count").textContent = `${done} of ${about.rows} labelled`;
  $("unsaved").textContent = about.unsaved ? `(${about.unsaved} not saved yet)` : "(all saved)";
  $("progress").value = done / about.rows;
}

function drawKeys() {
  $("severities").replaceChildren(...about.severities.map((name, at) => {
    const made = keyed(String(at + 1), name);
    made.setAttribute("aria-pressed", String(row.mine !== null && row.mine.severity === name));
    made.onclick = () => soon(() => label(name));
    return made;
  }));
  $("categories").replaceChildren(...letters(row.side).map((category) => {
    const made = keyed(category.key, category.name);
    made.setAttribute("aria-pressed", String(categories.has(category.id)));
    made.onclick = () => toggle(category.id);
    return made;
  }));
  show("refusal", about.refusal && row.side === "response");
  $("refusal").replaceChildren(node("kbd", "r"), ` refusal: ${refusal === null ? "?" : refusal ? "yes" : "no"}`);
  $("unusable").setAttribute("aria-pressed", String(row.mine !== null && row.mine.unusable));
}

function drawVotes() {
  const table = $("votes").querySelector("table");
  table.replaceChildren();
  show("votes", row.votes.length > 0);
  const head = node("tr");
  head.append(node("th", "voter"), ...about.severities.map((name) => node("th", name)), node("th", "categories"));
  table.append(head);
  for (const vote of row.votes) {
    const line = node("tr");
    line.append(node("td", vote.voter));
    const top = vote.severity ? Math.max(...Object.values(vote.severity)) : 0;
    for (const name of about.severities) {
      const value = vote.severity ? vote.severity[name] : null;
      line.append(node("td", value === null ? "–" : value.toFixed(2), value === top && value !== null ? "top" : ""));
    }
    const words = node("td");
    setText(words, vote.categories.join(", ") + (vote.raw ? ` “${vote.raw}”` : ""));
    line.append(words);
    table.append(line);
  }
}

function drawTexts() {
  const tags = [row.side, row.language, row.leaf, row.source].filter(Boolean);
  $("tags").replaceChildren(...tags.map((word) => node("span", word, "tag")));
  const turns = $("history").querySelector("div");
  turns.replaceChildren();
  show("history", row.history.length > 0);
  for (const turn of row.history) {
    const line = node("p", undefined, "text turn");
    line.append(node("b", turn.role + ": "));
    setText(line, turn.content);
    turns.append(line);
  }
  fill("source", row.translated_from ? row.translated_from.text : "");
  $("prompt").replaceChildren();
  setText($("prompt"), row.prompt);
  fill("thinking", row.thinking);
  fill("response", row.response);
  $("turn").textContent = "";
  if (row.response && row.tokens) {
    const signs = Array.from(row.response), place = $("response").querySelector(".text");
    $("turn").textContent = `token labels: ${row.tokens.outcome}`;
    if (row.tokens.onset !== null) {
      place.replaceChildren();
      setText(place, signs.slice(0, row.tokens.onset).join(""));
      setText(place, signs.slice(row.tokens.onset).join(""), "after");
    }
  }
  show("guess", row.guess !== null);
  if (row.guess) {
    const sure = row.guess.confidence === null ? "" : `, confidence ${row.guess.confidence.toFixed(2)}`;
    $("guess").querySelector("p").textContent = `${row.guess.severity} (${row.guess.categories.join(", ") || "no category"}) ` +
      `by ${row.guess.origin}${sure}${row.guess.abstain ? ", abstained" : ""}`;
  }
}

async function open(at) {
  row = await call("row/" + at);
  const start = row.mine || row.guess || { categories: [], refusal: null };
  categories = new Set(start.categories);
  refusal = start.refusal;
  drawTexts();
  drawVotes();
  drawKeys();
  $("prompt-title").textContent = `Prompt (row ${row.at + 1})`;
  document.body.dataset.at = row.at;
  window.scrollTo(0, 0);
}

function toggle(id) {
  if (!categories.delete(id)) categories.add(id);
  drawKeys();
}

async function label(severity, unusable = false) {
  const mild = unusable || severity === about.mildest;
  const told = await call("label", { at: row.at, severity: unusable ? "" : severity, unusable,
    categories: mild ? [] : [...categories], refusal: row.side === "response" ? refusal : null });
  drawProgress(told);
  say(`Row ${row.at + 1}: ${unusable ? "unusable" : severity}`);
  await open(row.at + 1 < about.rows ? row.at + 1 : row.at);
}

async function undo() {
  const told = await call("undo", null);
  drawProgress(told);
  say(told.undone === null ? "Nothing unsaved to undo" : `Undone: row ${told.undone + 1}`);
  await open(told.undone === null ? row.at : told.undone);
}

async function save() {
  const told = await call("save", null);
  drawProgress(told);
  say(told.saved ? `Saved as ${told.saved}` : "Nothing to save");
}

async function agree() {
  const told = await call("agreement");
  const people = Object.entries(told.reviewers).map(([name, count]) => `${name} ${count}`).join(", ");
  say(told.shared ? `${told.shared} rows by two or more (${people}): alpha ${told.alpha.toFixed(2)}, ` +
    `same on ${(100 * told.same).toFixed(0)} %, ${told.disputed.length} disputed` : "No row of yours has a second label yet");
}

function turnRefusal() {
  refusal = refusal === null ? true : refusal ? false : null;
  drawKeys();
}

function say(words, css) { $("said").textContent = words; $("said").className = css || "muted"; }

// One thing at a time: a key that comes while another is at work waits for it.
let queue = Promise.resolve();
function soon(work) {
  queue = queue.then(work).catch((problem) => say(problem.message, "error"));
  document.body.dataset.busy = "";
  const mine = queue;
  queue.then(() => { if (mine === queue) delete document.body.dataset.busy; });
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !row) return;
  const key = event.key, digit = Number(key);
  const named = { u: undo, x: () => label("", true), w: save, v: agree, n: () => open(about.next),
    ArrowLeft: () => open(Math.max(0, row.at - 1)), ArrowRight: () => open(Math.min(about.rows - 1, row.at + 1)),
    r: turnRefusal };
  if (digit >= 1 && digit <= about.severities.length) soon(() => label(about.severities[digit - 1]));
  else if (named[key]) soon(named[key]);
  else {
    soon(() => {
      const category = letters(row.side).find((one) => one.key === key);
      if (category) toggle(category.id);
    });
    return;
  }
  event.preventDefault();
}

document.addEventListener("keydown", press);
for (const [id, work] of Object.entries({ undo, save, agree, unusable: () => label("", true), next: () => open(about.next),
  back: () => open(Math.max(0, row.at - 1)), forward: () => open(Math.min(about.rows - 1, row.at + 1)),
  refusal: turnRefusal })) {
  $(id).onclick = () => soon(work);
}
window.addEventListener("pagehide", () => navigator.sendBeacon("api/save"));

soon(async () => {
  about = await call("about");
  $("title").textContent = `${about.title}: review of ${about.table}`;
  $("about").textContent = `${about.reviewer} · ${about.order}${about.query ? " · " + about.query : ""}`;
  drawProgress({});
  await open(about.next);
});
