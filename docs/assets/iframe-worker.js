/* Browsers refuse workers to a page that is opened from a folder; there the search runs in a hidden frame instead. */
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inner = frame.contentWindow
      this.inner.document.open() // so that no later load of an empty page replaces it
      this.inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.inner.document.write("<!doctype html><body></body>")
      const script = this.inner.document.createElement("script")
      script.src = url
      this.ready = new Promise((resolve, reject) => {
        script.addEventListener("load", resolve)
        script.addEventListener("error", () => reject(new Error(`${url} could not be loaded`)))
      })
      this.inner.document.body.append(script)
      this.inner.document.close()
    }
    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {
      this.inner.frameElement.remove()
    }
  }
  window.Worker = window.IFrameWorker
}
