//! Archives with an installer, for images without Debian's package manager.
use anyhow::Result;

use super::tree::{Tree, xz};
use super::{LICENCES, Package, source};
use crate::command::root;

/// Name and bytes of the archive.
pub(super) fn pack(package: &Package) -> Result<(String, Vec<u8>)> {
    let name = format!("dunlin-agent-{}", package.version);
    let mut tree = Tree::default();
    tree.graft(&format!("{name}/rootfs"), package.installed()?);
    tree.take(&format!("{name}/init"), &source().join("init"))?;
    tree.copy(&format!("{name}/install.sh"), &source().join("tarball/install.sh"))?;
    // Once more where build systems look for them.
    for licence in LICENCES {
        tree.copy(&format!("{name}/{licence}"), &root().join(licence))?;
    }
    Ok((
        format!("{name}-{}.tar.xz", package.triple),
        xz(&tree.tar("", package.epoch)?, package.preset, None)?,
    ))
}
