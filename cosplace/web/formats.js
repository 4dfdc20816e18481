// Photos that the server cannot read, converted by browsers that can: HEIC, the format of iPhones.

const QUALITY = 0.92;
const isHeic = (file) => /^image\/hei[cf]/.test(file.type) || /\.hei[cf]$/i.test(file.name);

/** The same file, or for a HEIC photo a JPEG without metadata; null if this browser cannot decode it. */
export async function toJpeg(file) {
  if (!isHeic(file)) return file;
  try {
    const image = await createImageBitmap(file);
    const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
    canvas.getContext("2d").drawImage(image, 0, 0);
    image.close();
    const jpeg = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
    return jpeg && new File([jpeg], file.name.replace(/\.hei[cf]$/i, ".jpg"), { type: "image/jpeg" });
  } catch {
    return null;
  }
}
