// The gallery of the front page: a box, a menu of families and buttons leave what matches.
// Without this script the gallery is a plain list.
"use strict";

(() => {
  const gallery = document.querySelector(".gallery");
  if (!gallery) return;
  const cards = [...gallery.querySelectorAll("li")].map((item) => ({
    item,
    family: item.querySelectorAll("a")[1].textContent,
    tags: [...item.querySelectorAll(".tag")].map((tag) => tag.textContent),
    words: item.textContent.toLowerCase(),
  }));
  const known = (values) => [...new Set(values)].sort();
  const make = (name, properties) => Object.assign(document.createElement(name), properties);

  const box = make("input", {
    type: "search",
    placeholder: "Find: a name, a word, a property",
    ariaLabel: "Find an operator",
    autocomplete: "off",
    spellcheck: false,
  });
  const menu = make("select", { ariaLabel: "Family" });
  menu.append(make("option", { value: "", textContent: "All families" }));
  menu.append(...known(cards.map((card) => card.family)).map((name) => new Option(name, name)));
  const buttons = known(cards.flatMap((card) => card.tags)).map((tag) =>
    make("button", { type: "button", textContent: tag, ariaPressed: "false" }),
  );
  const count = make("output", { className: "gallery-count" });

  function filter() {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const tags = buttons.filter((b) => b.ariaPressed === "true").map((b) => b.textContent);
    let shown = 0;
    for (const card of cards) {
      const fits =
        (!menu.value || menu.value === card.family) &&
        words.every((word) => card.words.includes(word)) &&
        tags.every((tag) => card.tags.includes(tag));
      card.item.hidden = !fits;
      shown += fits;
    }
    count.value = shown ? `${shown} of ${cards.length} operators` : "No operator is like that.";
  }

  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.ariaPressed = String(button.ariaPressed !== "true");
      filter();
    });
  }
  box.addEventListener("input", filter);
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    box.value = "";
    filter();
  });
  menu.addEventListener("change", filter);

  const find = make("div", { className: "gallery-find" });
  find.append(box, menu);
  const row = make("div", { className: "gallery-tags", role: "group", ariaLabel: "Properties" });
  row.append(...buttons);
  const bar = make("div", { className: "gallery-bar", role: "search" });
  bar.append(find, row, count);
  gallery.before(bar);
  filter();
})();
