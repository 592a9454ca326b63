// The guard's page: pieces of text go out over a web socket, verdicts come back. Texts are only ever set as text nodes.
"use strict";
const $ = (id) => document.getElementById(id);
const TICK = 60, LETTERS = 4; // played back: milliseconds between pieces, characters of a piece
let about = null, socket = null, sent = "", asked = null, timer = null;

function node(tag, text, css) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = css;
  return made;
}

// Characters that act instead of showing (controls, direction marks, zero widths) are shown by their code.
const ACTING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/;
function setText(place, text) {
  for (const part of text.split(new RegExp("(" + ACTING.source + ")"))) {
    const code = () => "U+" + part.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    if (part) place.append(ACTING.test(part) ? node("span", code(), "hidden-char") : document.createTextNode(part));
  }
}

function colour(risk) {
  if (about.risks.safe.includes(risk)) return "safe";
  return about.risks.loose.includes(risk) ? "bad" : "mid";
}

function badge(verdict) {
  const words = `${verdict.risk_level} ${verdict.risk_prob.toFixed(2)}`;
  return node("span", words, "badge " + colour(verdict.risk_level));
}

function why(verdict) {
  return about.risks.safe.includes(verdict.risk_level) ? "" : ` ${verdict.category}`;
}

function drawTokens(told) {
  const place = $("tokens");
  while (place.children.length > told.first) place.lastChild.remove();
  for (const token of told.tokens) {
    const made = node("span", "", "token " + colour(token.risk_level));
    setText(made, token.text);
    made.classList.toggle("flagged", token.flagged);
    made.title = `${token.token}: ${token.risk_level} ${token.risk_prob.toFixed(3)}${why(token)}`;
    place.append(made);
  }
  [...place.children].forEach((one, at) => one.classList.toggle("open", at >= told.final));
}

function drawDone(told) {
  const place = $("done");
  place.replaceChildren();
  const words = told.flagged ? `flagged from token ${told.onset}` : "not flagged";
  place.append(node("span", words, "badge " + (told.flagged ? "bad" : "safe")));
  delete document.body.dataset.busy;
}

function received(told) {
  if (told.event === "query") {
    $("query").replaceChildren(badge(told), why(told));
  } else if (told.event === "tokens") drawTokens(told);
  else if (told.event === "done") drawDone(told);
  else $("done").textContent = told.error;
}

function restart() {
  if (socket) socket.onmessage = socket.onclose = null, socket.close();
  $("tokens").replaceChildren();
  $("done").replaceChildren();
  sent = "";
  asked = $("prompt").value;
  const opened = socket = new WebSocket(`ws://${location.host}/stream`);
  opened.onmessage = (message) => received(JSON.parse(message.data));
  opened.onclose = () => { if (socket === opened) socket = null, delete document.body.dataset.busy; };
  return new Promise((ready) => {
    opened.onopen = () => { opened.send(JSON.stringify({ messages: [{ role: "user", content: asked }] })); ready(); };
  });
}

// What was typed goes on where it extends what was sent; any other change begins the stream anew.
async function typed() {
  const text = $("answer").value;
  if (!socket || asked !== $("prompt").value || !text.startsWith(sent)) await restart();
  const now = $("answer").value;
  if (socket && socket.readyState === WebSocket.OPEN && now.startsWith(sent) && now !== sent) {
    socket.send(JSON.stringify({ text: now.slice(sent.length) }));
    sent = now;
  }
}

function stop() { clearInterval(timer); timer = null; }

async function play() {
  stop();
  const text = $("answer").value;
  document.body.dataset.busy = "play";
  await restart();
  const playing = socket;
  timer = setInterval(() => {
    if (socket !== playing) return stop();
    const piece = text.slice(sent.length, sent.length + LETTERS);
    if (piece) playing.send(JSON.stringify({ text: piece })), sent += piece;
    else playing.send(JSON.stringify({ end: true })), stop();
  }, TICK);
}

// The model behind the server: its answer comes through the gate, and is judged once more here to be coloured.
async function ask() {
  $("answer").value = "";
  await restart();
  const body = { model: about.model || "default", stream: true, messages: [{ role: "user", content: asked }] };
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const reply = await fetch("/v1/chat/completions", options);
  if (!reply.ok) { $("done").textContent = (await reply.json()).error.message; return; }
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines.filter((each) => each.startsWith("data: {"))) heard(JSON.parse(line.slice(6)));
  }
}

function heard(chunk) {
  if (chunk.error) { $("done").textContent = chunk.error.message; return; }
  for (const choice of chunk.choices) {
    $("answer").value += choice.delta.content || "";
    typed();
    if (choice.guardmill) $("done").textContent = `stopped: ${choice.guardmill.risk_level}, ${choice.guardmill.category}`;
  }
}

async function begin() {
  about = await (await fetch("/health")).json();
  $("about").textContent = `${about.checkpoint} · ${about.reading} reading · ${about.context} tokens of context`;
  $("ask").hidden = !about.upstream;
  const words = about.risks.risk.map((risk) => node("span", risk, "badge " + colour(risk)));
  $("legend").append(...words.flatMap((word) => [word, " "]), "faint: may still change · bold: flagged, two in a row");
  $("answer").addEventListener("input", () => { stop(); typed(); });
  $("prompt").addEventListener("change", () => { stop(); typed(); });
  $("play").addEventListener("click", play);
  $("ask").addEventListener("click", ask);
  $("clear").addEventListener("click", () => { stop(); $("answer").value = ""; restart(); });
  document.body.dataset.ready = "";
}

begin();
