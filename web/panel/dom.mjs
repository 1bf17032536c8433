// Elements. Text always goes in as text: nothing that a log, a prompt or a name holds is read as HTML.

/** h("button", { class: "x", onclick: f, "aria-label": "…" }, "text", otherElement) */
export function h(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
}

export function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

/** Make a parent hold exactly these children, moving none that are in place (the focus stays). */
export function arrange(parent, children) {
    for (const child of [...parent.children]) if (!children.includes(child)) child.remove();
    children.forEach((child, i) => {
        if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] ?? null);
    });
}
