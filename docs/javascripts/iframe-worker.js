/* Search from disk: browsers start no worker on file://, so its script runs in a hidden frame instead. Material's
   `offline` plugin would load such a shim from another host; nothing of this site may. */
(() => {
  if (location.protocol !== "file:") return;

  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      addEventListener("message", (event) => {
        if (event.source !== this.frame.contentWindow) return;
        this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        if (this.onmessage) this.onmessage(event);
      });
      const page = this.frame.contentDocument;
      page.open();
      page.write(
        "<script>postMessage = (data) => parent.postMessage(data, '*'); importScripts = () => {};" +
        "ready = new Promise((done) => addEventListener('load', done));<" + "/script>" +
        `<script src="${new URL(url, location.href)}"><` + "/script>",
      );
      page.close();
    }

    postMessage(data) {
      const inside = this.frame.contentWindow;
      inside.ready.then(() => inside.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  }

  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
})();
