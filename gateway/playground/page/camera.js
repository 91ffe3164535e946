// Takes a picture or films a short clip with the camera.

import { byId } from "./dom.js";

const LONGEST = 10; // seconds of a clip

let take = () => {};
let stream = null;
let filming = null;

/** Shows the camera's picture; `taken` gets each picture and clip as a file. */
export async function openCamera(taken) {
  take = taken;
  byId("notice").textContent = "";
  try {
    if (!navigator.mediaDevices) throw new Error("browsers allow it only over https or on localhost");
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
  } catch (error) {
    byId("notice").textContent = `The camera cannot be used: ${error.message}.`;
    return;
  }
  byId("viewfinder").srcObject = stream;
  byId("camera-dialog").showModal();
  await byId("viewfinder").play();
}

function close() {
  filming?.stop();
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  byId("viewfinder").srcObject = null;
}

function snap() {
  const { videoWidth: width, videoHeight: height } = byId("viewfinder");
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").drawImage(byId("viewfinder"), 0, 0);
  canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 }).then((blob) => {
    take(new File([blob], "picture.jpg", { type: "image/jpeg" }));
  });
  byId("camera-dialog").close();
}

function film() {
  if (filming) {
    byId("camera-dialog").close();
    return;
  }
  const parts = [];
  filming = new MediaRecorder(stream);
  const ending = filming.mimeType.includes("mp4") ? "mp4" : "webm";
  filming.ondataavailable = ({ data }) => parts.push(data);
  filming.onstop = () => {
    filming = null;
    byId("film").textContent = "Film a clip";
    take(new File(parts, `clip.${ending}`, { type: `video/${ending}` }));
  };
  filming.start();
  byId("film").textContent = `Stop and use the clip (at most ${LONGEST} s)`;
  const own = filming;
  setTimeout(() => { if (filming === own) byId("camera-dialog").close(); }, 1000 * LONGEST);
}

/** Makes the dialog of the camera work. */
export function prepareCamera() {
  byId("snap").addEventListener("click", snap);
  byId("film").addEventListener("click", film);
  byId("camera-cancel").addEventListener("click", () => {
    if (filming) filming.onstop = () => { filming = null; byId("film").textContent = "Film a clip"; };
    byId("camera-dialog").close();
  });
  byId("camera-dialog").addEventListener("close", close);
}
