// Strings from locales/, and numbers as people read them.

const INPUT = { data: "dataset", models: "samples_with" }; // settings that the training nodes' inputs call otherwise

let texts = {}, inputs = {};

/** Read the strings of the language that ComfyUI is set to; what it lacks is English. */
export async function loadTexts(api, app) {
    const all = await (await api.fetchApi("/i18n")).json();
    const language = app.extensionManager.setting.get("Comfy.Locale") ?? "en";
    // Of zh-TW at least zh.
    const languages = ["en", language.split("-")[0], language].map((each) => all[each] ?? {});
    texts = Object.assign({}, ...languages.map((each) => each.pixart_delta));
    inputs = Object.assign({}, ...languages.flatMap((each) => trainingInputs(each.nodeDefs ?? {})));
}

/** The texts of the training nodes' inputs in one language: name -> {name, tooltip}. */
function trainingInputs(nodes) {
    return Object.entries(nodes).filter(([id, node]) => id.startsWith("PixArtDelta") && node.inputs?.samples_with).map(([, node]) => node.inputs);
}

/** A setting of a training in plain words, {name, help}: as the node's input is called, where that is translated. */
export function settingText({ name, help }) {
    const input = inputs[INPUT[name] ?? name];
    const key = input?.name ?? name, words = key.replaceAll("_", " ");
    return { name: words[0].toUpperCase() + words.slice(1), help: input?.tooltip ?? help };
}

/** The string of a key, with {name} replaced by values.name. */
export function t(key, values = {}) {
    return (texts[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

/** The string of a key for a job: its command's own (prepare_step), where there is one, or else that of all (step). */
export function tFor(job, key, values = {}) {
    const own = `${job.command}_${key}`;
    return t(own in texts ? own : key, values);
}

export function duration(seconds) {
    const whole = Math.max(0, Math.round(seconds));
    if (whole < 60) return t("seconds", { seconds: whole });
    if (whole < 3600) return t("minutes", { minutes: Math.floor(whole / 60), seconds: whole % 60 });
    const minutes = Math.round(whole / 60);
    if (minutes < 48 * 60) return t("hours", { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
    return t("days", { days: Math.round(minutes / 1440) });
}

export function bytes(count) {
    return count >= 1e9 ? t("gigabytes", { value: (count / 1e9).toFixed(2) }) : t("megabytes", { value: (count / 1e6).toFixed(0) });
}

export function number(value) {
    if (value === undefined || value === null) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

/** What a job's state is called: one that is ending says how, one that a person ended is not "done" (of a version before it is). */
export function stateOf(job) {
    if (job.state === "stopping" && job.wanted === "paused") return "pausing";
    return job.state === "done" && job.reason ? "stopped" : job.state;
}

/** "step 12 of 100 · loss 0.02 · 3 min left", as far as it is known; `why` it failed, unless that stands elsewhere. */
export function summary(job, why = true) {
    const parts = [];
    if (job.step !== undefined) parts.push(tFor(job, job.steps === undefined ? "step_only" : "step", job));
    if (job.loss !== undefined) parts.push(`${t("loss")} ${number(job.loss)}`);
    if (job.state === "running" && job.seconds_left !== undefined) parts.push(t("left", { time: duration(job.seconds_left) }));
    if (why && job.state === "failed" && job.reason) parts.push(job.reason);
    // The last line of a log, where there are no numbers.
    if (job.says && job.step === undefined) parts.push(job.says);
    return parts.join(" · ");
}

/** The same for a place that says nothing else of the job: "Mountains: running · step 12 of 100 · 3 min left". */
export function line(job) {
    const parts = [`${job.name}: ${t(stateOf(job))}`, summary(job), job.state === "failed" ? "" : job.reason];
    return parts.filter(Boolean).join(" · ");
}
