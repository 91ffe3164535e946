// Pictures, sounds and clips that the person attaches to a message.

const KINDS = { image: "image", audio: "audio", video: "video" };
const BY_ENDING = {
  jpg: "image", jpeg: "image", png: "image", webp: "image", gif: "image", bmp: "image", tif: "image", tiff: "image", avif: "image",
  wav: "audio", mp3: "audio", flac: "audio", ogg: "audio", opus: "audio", m4a: "audio", aac: "audio", aiff: "audio",
  mp4: "video", mov: "video", webm: "video", mkv: "video", avi: "video", m4v: "video", mpg: "video", mpeg: "video",
};

/** The kind of a file, from its type or else its name; null if it is not media. */
export function kindOf(file) {
  return KINDS[file.type.split("/")[0]] ?? BY_ENDING[file.name.split(".").pop().toLowerCase()] ?? null;
}

/** An item for a message: {kind, name, type, data, url}, with its bytes as a data URL and an address to show it. */
export async function itemOfFile(file) {
  return {
    kind: kindOf(file),
    name: file.name,
    type: file.type,
    data: await dataUrl(file),
    url: URL.createObjectURL(file),
  };
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
