// node page.mjs PAGE CHROMIUM TEXTS: type the texts into a page opened from the disk; its answers, as JSON.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [file, executablePath, texts] = process.argv.slice(2);
const { chromium } = createRequire(`${process.env.NODE_MODULES}/`)("playwright-core");
const args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"];
const browser = await chromium.launch({ executablePath, args });
const page = await browser.newPage();
const asked = [], errors = [];
page.on("request", (request) => asked.push(request.url()));
page.on("pageerror", (error) => errors.push(String(error)));
page.setDefaultTimeout(240_000);
await page.goto(pathToFileURL(file).href, { waitUntil: "commit" });
await page.waitForFunction(() => document.body?.dataset.ready === "yes").catch(() => {
  throw new Error(`the page is not ready: ${errors.join("; ")}`);
});
const given = JSON.parse(texts);
await page.locator("#text").fill(`${given.slice(0, -1).join(". ")}. `);
await page.locator("#text").pressSequentially(given.at(-1));  // each letter is an update
const sentences = given.length;
await page.waitForFunction((number) => document.querySelectorAll("#answers li").length === number, sentences);
await page.waitForTimeout(500);
const shown = await page.$$eval("#answers li", (items) => items.map((item) => ({
  sentence: item.querySelector("span").textContent, label: item.dataset.label, exit_layer: Number(item.dataset.layer),
  bars: item.querySelectorAll("i.run").length,
})));
const together = await page.evaluate((given) => window.classify.predict(given), JSON.parse(texts));
await browser.close();
console.log(JSON.stringify({ shown, together, asked, errors }));
