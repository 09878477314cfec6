// Dark or light: what the system says, until the reader says otherwise. Not a module, so that it runs before anything is drawn.
{
  const remembered = localStorage.getItem("theme");
  if (remembered) document.documentElement.dataset.theme = remembered;

  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("toggle-theme");
    const label = () => (button.textContent = dark() ? "Light" : "Dark");
    button.addEventListener("click", () => {
      const theme = dark() ? "light" : "dark";
      document.documentElement.dataset.theme = theme;
      localStorage.setItem("theme", theme);
      label();
    });
    system.addEventListener("change", label);
    label();
  });
}
