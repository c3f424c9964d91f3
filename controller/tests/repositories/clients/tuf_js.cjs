// tuf-js as a client: METADATA_DIR METADATA_URL TARGET_DIR TARGET_URL ROOT TARGET...
//
// With TUF_CA and TUF_TOKEN in the environment it believes that authority and shows that token.
const fs = require('node:fs');
const https = require('node:https');
const path = require('node:path');
const { BaseFetcher, Updater } = require('tuf-js');
const { DownloadHTTPError } = require('tuf-js/dist/error');

/** Fetches over TLS from a pinned authority, with a bearer token. */
class Shown extends BaseFetcher {
  constructor(authority, token) {
    super();
    this.options = { ca: fs.readFileSync(authority), headers: { authorization: `Bearer ${token}` }, timeout: 20000 };
  }

  fetch(url) {
    return new Promise((resolve, reject) => {
      const request = https.get(url, this.options, (answer) => {
        if (answer.statusCode === 200) return resolve(answer);
        answer.resume();
        return reject(new DownloadHTTPError(`${url}: status`, answer.statusCode));
      });
      request.on('timeout', () => request.destroy(new Error(`${url}: no answer`)));
      request.on('error', reject);
    });
  }
}

async function main([metadataDir, metadataBaseUrl, targetDir, targetBaseUrl, root, ...targets]) {
  const held = path.join(metadataDir, 'root.json');
  if (!fs.existsSync(held)) fs.copyFileSync(root, held);
  const { TUF_CA, TUF_TOKEN } = process.env;
  const fetcher = TUF_CA ? new Shown(TUF_CA, TUF_TOKEN) : undefined;
  const updater = new Updater({ metadataDir, metadataBaseUrl, targetDir, targetBaseUrl, fetcher });
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
