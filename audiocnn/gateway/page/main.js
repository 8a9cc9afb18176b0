// Starts the page: tabs, the key, dropping files anywhere, and what the served model is.

import { loadModel, model, onKeyNeeded } from "./api.js";
import { byId } from "./dom.js";
import { stop } from "./live.js";
import { missingReason } from "./microphone.js";
import { analyse, showExamples } from "./sound.js";
import { wordsFor } from "./words.js";

const RETRY_SECONDS = 3;
const TABS = ["sound", "live"];

function select(name) {
  for (const each of TABS) {
    const tab = byId(`tab-${each}`), isChosen = each === name;
    tab.setAttribute("aria-selected", isChosen);
    tab.tabIndex = isChosen ? 0 : -1;
    byId(`panel-${each}`).hidden = !isChosen;
  }
  if (name !== "live") stop();
  history.replaceState(null, "", name === "live" ? "#live" : location.pathname + location.search);
}

function startTabs() {
  for (const name of TABS) {
    const tab = byId(`tab-${name}`);
    tab.addEventListener("click", () => select(name));
    tab.addEventListener("keydown", ({ key }) => {
      if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(key)) return;
      const other = key === "Home" ? TABS[0] : key === "End" ? TABS[1] : TABS.find((each) => each !== name);
      select(other);
      byId(`tab-${other}`).focus();
    });
  }
  select(location.hash === "#live" ? "live" : "sound");
}

/** Files dropped or pasted anywhere, at any time. */
function startDropping() {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  const give = (files) => {
    if (!files?.length) return;
    select("sound");
    analyse(files[0], files[0].name);
  };
  document.addEventListener("dragenter", (event) => hasFiles(event) && mark(1));
  document.addEventListener("dragleave", (event) => hasFiles(event) && mark(-1));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark(-depth);
    give(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => give(event.clipboardData?.files));
}

/** Resolves to the key that was typed in, or to null. */
function askForKey(isWrong) {
  const dialog = byId("key-dialog"), field = byId("key");
  byId("key-problem").textContent = isWrong ? "This is not one of the keys." : "";
  field.value = "";
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const key = field.value.trim();
      if (dialog.returnValue !== "ok") resolve(null);
      else if (/^[\x21-\x7e]+$/.test(key)) resolve(key);
      else resolve(askForKey(true)); // no header can carry it
    }, { once: true });
  });
}

/** What the model is: asked until it answers. */
async function startModel() {
  for (;;) {
    try {
      await loadModel();
      break;
    } catch (error) {
      byId("model").textContent = wordsFor(error.code)[0];
      if (error.code === "unauthorized") return;
      await new Promise((resolve) => setTimeout(resolve, 1000 * (error.retrySeconds ?? RETRY_SECONDS)));
    }
  }
  const { name, version } = model.config.model;
  byId("model").textContent = `${name} ${version} · ${model.labels.size} classes`;
  showExamples(model.config.examples);
}

function explainMicrophone() {
  const reason = missingReason();
  if (!reason) return;
  byId("record").disabled = byId("listen").disabled = true;
  for (const note of document.querySelectorAll(".no-microphone")) {
    note.textContent = wordsFor(reason).join(": ");
    note.hidden = false;
  }
}

onKeyNeeded(askForKey);
startTabs();
startDropping();
explainMicrophone();
startModel();
performance.mark("usable");
document.documentElement.dataset.ready = "true";
