"""python-tuf as a client: METADATA_DIR METADATA_URL TARGET_DIR TARGET_URL ROOT TARGET..."""

import sys

from tuf.ngclient import Updater

metadata_dir, metadata_url, target_dir, target_url, root, *targets = sys.argv[1:]
with open(root, "rb") as file:
    first = file.read()
updater = Updater(metadata_dir, metadata_url, target_dir, target_url, bootstrap=first)
updater.refresh()
for target in targets:
    info = updater.get_targetinfo(target)
    if info is None:
        sys.exit(f"{target} is not listed")
    updater.download_target(info)
