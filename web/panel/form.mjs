// Start a training without a graph: a dialog over the trainer's own settings, which the server lists and checks.
import { h } from "./dom.mjs";
import { settingText, t } from "./text.mjs";

const FIRST = ["base", "data", "models", "steps", "batch_size", "learning_rate", "guidance", "lora_rank", "copy_blocks", "sample_every"];
const SAMPLE_EVERY = 100; // steps
const OWN = ["run", "output", "only_inside"]; // the queue's

export class Form {
    #fields = new Map(); // name -> {row, read}

    /** @param {(job) => void} started called with the id of a job that was queued */
    constructor(store, started) {
        Object.assign(this, { store, started });
        this.command = h("select", { onchange: () => this.#fill(this.#values()) });
        this.name = h("input", { type: "text", maxlength: "80" });
        this.recipe = h("select", { "data-form": "recipe" });
        this.fields = h("div", { class: "pxd-fields" });
        this.more = h("div", { class: "pxd-fields" });
        this.said = h("pre", { class: "pxd-said", role: "status" });
        const button = (key, press) => h("button", { type: "button", class: "pxd-button", "data-form": key, onclick: press }, t(key));
        this.element = h("dialog", { class: "pxd-dialog pxd-form", "aria-label": t("new_training"), onkeydown: (event) => event.stopPropagation() },
            h("h2", {}, t("new_training")),
            h("div", { class: "pxd-fields" }, ...label(t("command"), this.command), ...label(t("name"), this.name, t("name_hint")), ...label(t("recipe"), this.recipe, t("recipe_hint"))),
            this.fields, h("details", {}, h("summary", {}, t("all_settings")), this.more), this.said,
            h("div", { class: "pxd-buttons" }, button("form_start", () => this.#send(false)), button("form_check", () => this.#send(true)), button("close", () => this.element.close())));
        document.body.append(this.element);
    }

    destroy() {
        this.element.remove();
    }

    /** Show it, empty or with another job's settings to change. Throws when the server does not answer. */
    async open(job = null, name = "") {
        this.form = await this.store.form();
        this.command.replaceChildren(...Object.keys(this.form.commands).map((command) => h("option", { value: command }, t(`${command}_does`))));
        const recipes = [...this.form.recipes.map((each) => [each, each]), ["", t("none")]];
        this.recipe.replaceChildren(...recipes.map(([value, text]) => h("option", { value }, text)));
        if (job) this.command.value = job.command;
        if (job) this.recipe.value = ""; // all of its settings are there already
        this.name.value = name;
        this.said.textContent = "";
        this.#fill(job?.settings ?? this.#beginning());
        this.element.showModal();
    }

    /** What a new form proposes: a base model, and pictures now and then. */
    #beginning() {
        const { base, models } = this.form.names;
        const found = base.find((each) => /base/i.test(each.value)) ?? base[0];
        return { base: found?.value ?? "", models: models[0]?.value ?? "", sample_every: SAMPLE_EVERY };
    }

    #fill(values) {
        this.#fields.clear();
        const rows = this.form.commands[this.command.value].filter((row) => !OWN.includes(row.name));
        const put = (place, names) => place.replaceChildren(...names.flatMap((row) => this.#field(row, values[row.name] ?? row.default)));
        put(this.fields, FIRST.map((name) => rows.find((row) => row.name === name)).filter(Boolean));
        put(this.more, rows.filter((row) => !FIRST.includes(row.name)));
    }

    #field(row, value) {
        const [input, read] = control(row, value, this.form.names[row.name]);
        this.#fields.set(row.name, { row, read });
        input.dataset.setting = row.name;
        const { name, help } = settingText(row);
        return label([name, h("small", {}, row.name)], input, help);
    }

    /** Settings that are not the default, as the server takes them. */
    #values() {
        const values = {};
        for (const [name, { row, read }] of this.#fields) {
            const value = read();
            if (JSON.stringify(value) !== JSON.stringify(row.default)) values[name] = value;
        }
        return values;
    }

    async #send(check) {
        this.said.dataset.bad = false;
        this.said.textContent = t("asking");
        try {
            const { job, text } = await this.store.train({ command: this.command.value, name: this.name.value.trim(), recipe: this.recipe.value, settings: this.#values(), check });
            this.said.textContent = text;
            if (check) return;
            this.element.close();
            this.started(job);
        } catch (error) {
            this.said.dataset.bad = true;
            this.said.textContent = error.message;
        }
    }
}

/** A field with its name: a text, or a text and what the trainer calls the setting. */
function label(text, input, help) {
    input.title = help ?? "";
    return [h("label", { title: help }, h("span", {}, ...[text].flat()), input)];
}

/** The input of a setting, and what reads its value. */
function control(row, value, named) {
    if (row.choices || named) return choice(row, value, named ?? row.choices.map((each) => ({ value: each, text: each })));
    if (row.type === "bool") {
        const box = h("input", { type: "checkbox" });
        box.checked = value;
        return [box, () => box.checked];
    }
    if (row.type === "int" || row.type === "float") {
        const input = h("input", { type: "number", min: row.low, max: row.high, step: row.type === "int" ? "1" : "any" });
        input.value = value;
        return [input, () => (input.value === "" ? row.default : Number(input.value))];
    }
    const plain = row.type === "str";
    const input = h("input", { type: "text" });
    input.value = plain ? value : JSON.stringify(value);
    return [input, () => (plain ? input.value : parse(input.value, row.default))];
}

/** A list to choose from; for what names a file, also a text of one's own. */
function choice(row, value, options) {
    const known = options.some((each) => each.value === value) || (value === "" && !row.required);
    const entries = row.path ? [...(row.required ? [] : [{ value: "", text: t("none") }]), ...options] : options;
    if (!known && value !== "") entries.unshift({ value, text: String(value).split(/[\\/]/).slice(-3).join("/") });
    const select = h("select", {}, ...entries.map((each) => h("option", { value: each.value }, each.text)));
    if (row.path) select.append(h("option", { value: "\0" }, t("other_path")));
    if (value !== "" || known) select.value = value;
    if (!row.path) return [select, () => select.value];
    const other = h("input", { type: "text", hidden: select.value !== "\0", placeholder: t("other_path") });
    select.addEventListener("change", () => (other.hidden = select.value !== "\0"));
    return [h("span", { class: "pxd-choice" }, select, other), () => (select.value === "\0" ? other.value : select.value)];
}

/** JSON; what is none goes to the server as it is, which says what is wrong with it. */
function parse(text, empty) {
    if (!text.trim()) return empty;
    try {
        return JSON.parse(text);
    } catch {
        return text;
    }
}
