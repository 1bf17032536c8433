// Strings from locales/, and numbers as people read them.

let texts = {};

/** Read the strings of the language that ComfyUI is set to; what it lacks is English. */
export async function loadTexts(api, app) {
    const all = await (await api.fetchApi("/i18n")).json();
    const language = app.extensionManager.setting.get("Comfy.Locale") ?? "en";
    texts = { ...all.en?.pixart_delta, ...all[language]?.pixart_delta };
}

/** The string of a key, with {name} replaced by values.name. */
export function t(key, values = {}) {
    return (texts[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export function duration(seconds) {
    if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
    const hours = Math.floor(seconds / 3600);
    return hours < 48 ? `${hours} h ${Math.round((seconds % 3600) / 60)} min` : `${Math.round(hours / 24)} d`;
}

export function bytes(count) {
    return count >= 1e9 ? `${(count / 1e9).toFixed(2)} GB` : `${(count / 1e6).toFixed(0)} MB`;
}

export function number(value) {
    if (value === undefined || value === null) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}
