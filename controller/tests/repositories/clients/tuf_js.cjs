// tuf-js as a client: METADATA_DIR METADATA_URL TARGET_DIR TARGET_URL ROOT TARGET...
const fs = require('node:fs');
const path = require('node:path');
const { Updater } = require('tuf-js');

async function main([metadataDir, metadataBaseUrl, targetDir, targetBaseUrl, root, ...targets]) {
  const held = path.join(metadataDir, 'root.json');
  if (!fs.existsSync(held)) fs.copyFileSync(root, held);
  const updater = new Updater({ metadataDir, metadataBaseUrl, targetDir, targetBaseUrl });
  await updater.refresh();
  for (const target of targets) {
    const info = await updater.getTargetInfo(target);
    if (!info) throw new Error(`${target} is not listed`);
    await updater.downloadTarget(info);
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
