use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Child, Stdio};

use data_encoding::HEXLOWER;
use serde_json::Value;
use sha2::Digest as _;

use super::*;
use crate::command::run;

const EPOCH: u64 = 1_700_000_000;

/// A package of some bytes that begin like a static program of the target: formats do not look further.
fn package(triple: &str, board: Option<&str>) -> Package {
    let machine = cross::machine(triple).unwrap();
    let mut program = vec![0; 64];
    program[..5].copy_from_slice(b"\x7fELF\x02");
    program[18] = u8::try_from(machine.elf).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    std::fs::write(&path, program).unwrap();
    let mut package = Package::new(triple, &path, "1.2.3", EPOCH).unwrap();
    package.notice = NOTICE.to_owned();
    package.board = board.map(|name| (name.to_owned(), boards::named(name).unwrap()));
    package
}

const NOTICE: &str = "What others wrote.\n";

const TRIPLES: [&str; 3] =
    ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl", "armv7-unknown-linux-musleabihf"];

#[test]
fn the_same_input_gives_the_same_bytes() {
    let pack = |triple: &str| {
        let package = package(triple, Some("raspberry-pi-4"));
        [deb::pack(&package), tarball::pack(&package), oci::pack(&[package])].map(Result::unwrap)
    };
    for triple in TRIPLES {
        assert_eq!(pack(triple), pack(triple));
    }
}

#[test]
fn a_program_of_another_machine_and_an_odd_version_are_refused() {
    let this_test = std::env::current_exe().unwrap();
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    assert!(Package::new(&host, &this_test, "1.0", EPOCH).is_ok());
    let refusal = |triple: &str, version: &str| {
        Package::new(triple, &this_test, version, EPOCH).err().map(|error| error.to_string())
    };
    assert!(refusal("armv7-unknown-linux-musleabihf", "1.0").unwrap().contains("is no program for armv7"));
    assert!(refusal(&host, "v1").unwrap().contains("does not begin with a digit"));
    assert!(refusal(&host, "1-1").unwrap().contains("other characters"));
    let dynamic = Package::new(&host, &this_test, "1.0", EPOCH).unwrap();
    let twice = ["x86_64-unknown-linux-gnu", "x86_64-unknown-linux-musl"].map(|triple| package(triple, None));
    assert!(distinct(&twice).unwrap_err().to_string().contains("are both amd64"));
    assert!(oci::pack(&[dynamic]).unwrap_err().to_string().contains("linked dynamically"));
}

#[test]
fn every_board_bounds_its_agent_by_its_own_memory() {
    for path in boards::files().unwrap() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let board = boards::read(&path).unwrap();
        let tree = package(&board.build.triple, Some(&name)).installed().unwrap();
        let text = |path: &str| {
            let bytes = tree.0[path].bytes.clone();
            String::from_utf8(bytes.unwrap()).unwrap()
        };
        let drop_in = text("usr/lib/systemd/system/dunlin-agent.service.d/10-board.conf");
        let bound: u64 = drop_in.split_once("MemoryMax=").unwrap().1.trim().parse().unwrap();
        assert_eq!(bound, memory_max(&board.device), "{name}");
        assert!(bound > board.device.budgets.model_ram_bytes_max && bound < board.device.ram_bytes, "{name}");
        let settings: toml::Table = toml::from_str(&text("etc/dunlin/agent.d/10-board.toml")).unwrap();
        let device: DeviceProfile = settings["device"].clone().try_into().unwrap();
        assert_eq!((settings.len(), device), (1, board.device), "{name}");
    }
}

/// What is packed by what its instructions mean comes out whole: such programs are branches from end to end.
#[test]
fn debian_unpacks_the_program_that_was_packed() {
    let branches: [fn(u32) -> Vec<u8>; 3] = [
        |n| [&[0xe8][..], &n.to_le_bytes()].concat(),
        |n| (0x9400_0000 | n).to_le_bytes().to_vec(),
        |n| (0xeb00_0000 | n).to_le_bytes().to_vec(),
    ];
    for (triple, branch) in TRIPLES.into_iter().zip(branches) {
        let mut package = package(triple, None);
        package.program.extend((0..20_000).flat_map(|n| branch(n * 977 % 0x2_0000)));
        let folder = tempfile::tempdir().unwrap();
        let (name, bytes) = deb::pack(&package).unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        run(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(folder.path())).unwrap();
        assert!(std::fs::read(folder.path().join(PROGRAM)).unwrap() == package.program, "{triple}");
    }
}

#[test]
fn every_kind_of_package_says_what_others_wrote() {
    let package = package(TRIPLES[1], None);
    let notice = format!("{DOCUMENTS}/{THIRD_PARTIES}");
    let text = |tree: Tree| String::from_utf8(tree.0[&notice].bytes.clone().unwrap()).unwrap();
    // The Debian package and the archive hold the one, images the other.
    assert_eq!([package.installed(), package.common()].map(|tree| text(tree.unwrap())), [NOTICE, NOTICE]);
    let copyright = std::fs::read_to_string(source().join("debian/copyright")).unwrap();
    assert!(copyright.contains(&format!("\n {THIRD_PARTIES} beside this one")), "{copyright}");
}

/// The rules of image-spec 1.1 that a layout can break: `oci-layout`, descriptors, digests, sizes, media types, platforms.
#[test]
fn an_image_layout_keeps_to_the_specification() {
    let packages = TRIPLES.map(|triple| package(triple, Some("raspberry-pi-4")));
    let (_, archive) = oci::pack(&packages).unwrap();
    let mut files = std::collections::BTreeMap::new();
    for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(path, bytes);
    }
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
    let mut seen = std::collections::BTreeSet::new();
    let mut follow = |descriptor: &Value, media_type: &str| {
        assert_eq!(descriptor["mediaType"], media_type);
        let digest = descriptor["digest"].as_str().unwrap();
        let hex = digest.strip_prefix("sha256:").unwrap();
        let path = format!("blobs/sha256/{hex}");
        let bytes = files[&path].clone();
        assert_eq!(descriptor["size"], bytes.len());
        assert_eq!(HEXLOWER.encode(&sha2::Sha256::digest(&bytes)), hex);
        seen.insert(path);
        bytes
    };
    let index = "application/vnd.oci.image.index.v1+json";
    let top = json(&files["index.json"]);
    assert_eq!((&top["schemaVersion"], &top["mediaType"]), (&2.into(), &index.into()));
    let named = &top["manifests"][0];
    assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], "1.2.3");
    let inner = json(&follow(named, index));
    assert_eq!((&inner["schemaVersion"], &inner["mediaType"]), (&2.into(), &index.into()));
    let mut platforms = Vec::new();
    for descriptor in inner["manifests"].as_array().unwrap() {
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json(&follow(descriptor, manifest_type));
        assert_eq!((&manifest["schemaVersion"], &manifest["mediaType"]), (&2.into(), &manifest_type.into()));
        let config = json(&follow(&manifest["config"], "application/vnd.oci.image.config.v1+json"));
        let layers = manifest["layers"].as_array().unwrap();
        let diffs = config["rootfs"]["diff_ids"].as_array().unwrap();
        assert_eq!((layers.len(), diffs.len(), &config["rootfs"]["type"]), (1, 1, &"layers".into()));
        follow(&layers[0], "application/vnd.oci.image.layer.v1.tar");
        // Not compressed, so the digest of the layer is that of what it holds.
        assert_eq!(diffs[0], layers[0]["digest"]);
        for field in ["architecture", "os", "variant"] {
            assert_eq!(config[field], descriptor["platform"][field]);
        }
        platforms.push(descriptor["platform"].clone());
    }
    assert_eq!(
        serde_json::to_string(&platforms).unwrap(),
        r#"[{"architecture":"amd64","os":"linux"},{"architecture":"arm64","os":"linux","variant":"v8"},{"architecture":"arm","os":"linux","variant":"v7"}]"#
    );
    let blobs = files.iter().filter(|(path, bytes)| path.starts_with("blobs/sha256/") && !bytes.is_empty());
    assert_eq!(blobs.map(|(path, _)| path.clone()).collect::<Vec<_>>(), seen.into_iter().collect::<Vec<_>>());
}

#[test]
fn an_image_is_read_by_a_program_that_others_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let (name, bytes) = oci::pack(&TRIPLES.map(|triple| package(triple, None))).unwrap();
    let archive = folder.path().join(name);
    std::fs::write(&archive, bytes).unwrap();
    let image = format!("oci-archive:{}:1.2.3", archive.display());
    for (arch, variant) in [("amd64", ""), ("arm64", "v8"), ("arm", "v7")] {
        let choice = ["--override-os", "linux", "--override-arch", arch, "--override-variant", variant];
        let told = output(Command::new("skopeo").args(choice).args(["inspect", &image])).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["Architecture"], arch);
        assert_eq!(told["Labels"]["org.opencontainers.image.version"], "1.2.3");
    }
    // Copying reads every blob and compares its digest.
    let copy = format!("oci:{}:copy", folder.path().join("copy").display());
    run(Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet", "--all", &image, &copy]))
        .unwrap();
}

#[test]
fn every_shell_script_passes_shellcheck() {
    let mut tree = Tree::default();
    tree.take("", &source()).unwrap();
    let scripts = tree.0.iter().filter(|(_, entry)| {
        entry.bytes.as_ref().is_some_and(|bytes| {
            bytes.starts_with(b"#!/bin/sh\n") || bytes.starts_with(b"#!/sbin/openrc-run\n")
        })
    });
    let scripts: Vec<_> = scripts.collect();
    assert!(scripts.len() > 10, "scripts begin with #!/bin/sh or #!/sbin/openrc-run");
    for (path, entry) in &scripts {
        assert_eq!(entry.mode, 0o755, "{path} can not be executed");
    }
    run(Command::new("shellcheck").current_dir(source()).args(scripts.iter().map(|(path, _)| path))).unwrap();
}

/// This machine's own system with everything that is written going to memory, without services, in a mount namespace of its
/// own: packages are installed there by the real package manager.
struct TestRoot {
    holder: Child,
    _folder: tempfile::TempDir,
    /// The root, seen from here.
    root: PathBuf,
    /// What was written in it.
    written: PathBuf,
}

const MOUNT: &str = "mount -t tmpfs tmpfs \"$1\" && cd \"$1\" && mkdir written work root && \
    mount -t overlay overlay -o lowerdir=/,upperdir=written,workdir=work root && \
    mount -t proc proc root/proc && mount --rbind /dev root/dev && mount -t tmpfs tmpfs root/run && \
    mkdir root/packages && echo ready && exec sleep 600";

impl TestRoot {
    fn new() -> Self {
        let user = output(Command::new("id").arg("-u")).unwrap();
        assert_eq!(user.trim(), "0", "this test mounts a root file system of its own: run it as root");
        let folder = tempfile::tempdir().unwrap();
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec", MOUNT, "sh"])
            .arg(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        let told = holder.stdout.as_mut().unwrap().read_exact(&mut ready);
        let seen = PathBuf::from(format!("/proc/{}/root{}", holder.id(), folder.path().display()));
        let root = Self { holder, root: seen.join("root"), written: seen.join("written"), _folder: folder };
        told.expect("an overlay of the root file system can be mounted");
        root
    }

    /// Runs a program in it; standard output and error together, and whether it went well.
    fn run(&self, words: &[&str]) -> (bool, String) {
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.holder.id());
        let inside = PathBuf::from("/")
            .join(self.root.strip_prefix(format!("/proc/{}/root", self.holder.id())).unwrap());
        let output = Command::new("nsenter")
            .args([&namespace, "--wd=/", "chroot"])
            .arg(inside)
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// The same for what has to go well.
    fn ok(&self, words: &[&str]) -> String {
        let (ok, text) = self.run(words);
        assert!(ok, "{words:?}: {text}");
        text
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Packs a program and hands the package to dpkg.
    fn install(&self, package: &Package) {
        let (name, bytes) = deb::pack(package).unwrap();
        std::fs::write(self.path("packages").join(&name), bytes).unwrap();
        self.ok(&["dpkg", "--install", &format!("/packages/{name}")]);
    }
}

impl Drop for TestRoot {
    fn drop(&mut self) {
        // With its last process the namespace ends, and with it its mounts.
        self.holder
            .kill()
            .and_then(|()| self.holder.wait())
            .expect("the holder of the mounts is ours to end");
    }
}

/// Files below a folder whose path names the agent.
fn left(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            found.extend(left(&path));
        }
        // An overlay notes a deleted file as a device without a number.
        let deleted = metadata.mode() & 0o170_000 == 0o020_000 && metadata.rdev() == 0;
        if !deleted && path.file_name().unwrap().to_string_lossy().contains("dunlin") {
            found.push(path);
        }
    }
    found
}

/// The agent of the development build, without the symbols that are most of it.
fn development_build(version: &str, folder: &Path) -> Package {
    let built = target_dir().join("debug/dunlin-agent");
    let program = folder.join("dunlin-agent");
    assert!(built.is_file(), "{} is not there; `cargo build -p dunlin-agent` makes it", built.display());
    run(Command::new("strip").arg("-o").args([&program, &built])).unwrap();
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut package = Package::new(&triple, &program, version, EPOCH).unwrap();
    package.notice = NOTICE.to_owned();
    package.board = Some(("x86-64-generic".to_owned(), boards::named("x86-64-generic").unwrap()));
    package.preset = 0;
    package
}

#[test]
fn a_package_is_installed_upgraded_and_purged_and_state_lives_until_the_purge() {
    let folder = tempfile::tempdir().unwrap();
    let mut package = development_build("1.0", folder.path());
    let root = TestRoot::new();
    root.install(&package);

    let user = root.ok(&["getent", "passwd", "dunlin"]);
    let state = root.path("var/lib/dunlin").metadata().unwrap();
    assert_eq!(user.split(':').nth(2).unwrap(), state.uid().to_string());
    assert_eq!(state.permissions().mode() & 0o7777, 0o700);
    let enabled = root.path("etc/systemd/system/multi-user.target.wants/dunlin-agent.service");
    assert!(enabled.is_symlink());

    let notice = root.path(&format!("{DOCUMENTS}/{THIRD_PARTIES}"));
    assert_eq!(std::fs::read_to_string(notice).unwrap(), NOTICE);

    // What systemd itself says of the unit, with the board's drop-in, and of what it may do.
    let (_, told) = root.run(&["systemd-analyze", "verify", "--man=no", "dunlin-agent.service"]);
    assert!(!told.contains("dunlin"), "{told}");
    let cat = root.ok(&["systemd-analyze", "cat-config", "systemd/system/dunlin-agent.service"]);
    assert!(cat.contains(&format!("MemoryMax={}", memory_max(&package.board.as_ref().unwrap().1.device))));
    root.ok(&["systemd-analyze", "security", "--offline=true", "--threshold=20", "dunlin-agent.service"]);

    // The installed program with the installed settings, as the user it has there.
    let as_user = ["setpriv", "--reuid=dunlin", "--regid=dunlin", "--clear-groups", "/usr/bin/dunlin-agent"];
    let settings = root.ok(&[&as_user[..], &["--json", "check"]].concat());
    let settings: Value = serde_json::from_str(&settings).unwrap();
    assert_eq!(
        (&settings["device"]["class"], &settings["warnings"]),
        (&"x86-64-generic".into(), &Value::Array(Vec::new()))
    );
    let (ok, told) = root.run(&[&as_user[..], &["run"]].concat());
    assert!(!ok && told.contains("is not enrolled"), "{told}");
    root.ok(&["/usr/lib/dunlin/os-healthy", "0"]);

    root.ok(&[
        &["setpriv", "--reuid=dunlin", "--regid=dunlin", "--clear-groups"][..],
        &["mkdir", "/var/lib/dunlin/spool"],
    ]
    .concat());
    std::fs::write(root.path("var/lib/dunlin/spool/records"), "kept").unwrap();
    let changed = "# Changed by the administrator.\n[telemetry]\nwindow_s = 30\n";
    std::fs::write(root.path("etc/dunlin/agent.toml"), changed).unwrap();
    std::fs::write(root.path("etc/dunlin/agent.d/50-site.toml"), "[telemetry]\nreport_s = 60\n").unwrap();
    root.ok(&["systemctl", "disable", "dunlin-agent.service"]);

    package.version = "1.1".to_owned();
    root.install(&package);
    let version =
        root.ok(&["dpkg-query", "--show", "--showformat=${Version} ${db:Status-Status}", "dunlin-agent"]);
    assert_eq!(version, "1.1 installed");
    let kept = || std::fs::read_to_string(root.path("var/lib/dunlin/spool/records")).unwrap_or_default();
    assert_eq!(kept(), "kept");
    assert_eq!(std::fs::read_to_string(root.path("etc/dunlin/agent.toml")).unwrap(), changed);
    assert!(!enabled.is_symlink(), "an upgrade enables what the administrator disabled");

    root.ok(&["dpkg", "--remove", "dunlin-agent"]);
    assert!(!root.path(PROGRAM).exists());
    assert_eq!(kept(), "kept");
    root.ok(&["dpkg", "--purge", "dunlin-agent"]);
    std::fs::remove_dir_all(root.path("packages")).unwrap();
    assert_eq!(left(&root.written), Vec::<PathBuf>::new());
    assert_eq!(left(&root.path("run")), Vec::<PathBuf>::new());
}

#[test]
fn the_installer_of_an_archive_knows_three_ways_to_start_the_agent_and_takes_all_back() {
    let folder = tempfile::tempdir().unwrap();
    let (name, bytes) = tarball::pack(&package(TRIPLES[1], Some("raspberry-pi-4"))).unwrap();
    let archive = folder.path().join(name);
    std::fs::write(&archive, bytes).unwrap();
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(folder.path())).unwrap();
    let installer = folder.path().join("dunlin-agent-1.2.3/install.sh");
    let ways: [(&str, &[&str], &str); 4] = [
        (
            "usr/lib/systemd",
            &["usr/lib/systemd/systemd"],
            "etc/systemd/system/multi-user.target.wants/dunlin-agent.service",
        ),
        ("sbin", &["sbin/openrc-run"], "etc/runlevels/default/dunlin-agent"),
        ("etc/init.d", &["etc/init.d/rcS"], "etc/init.d/S95dunlin-agent"),
        ("etc/rc5.d", &[], "etc/rc5.d/S95dunlin-agent"),
    ];
    for (number, (there, files, started)) in ways.into_iter().enumerate() {
        let root = folder.path().join(format!("root{number}"));
        for path in ["etc", there] {
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
        for file in files.iter().chain(&["etc/passwd", "etc/group"]) {
            std::fs::write(root.join(file), "").unwrap();
            std::fs::set_permissions(root.join(file), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let install = |args: &[&str]| {
            run(Command::new(&installer).arg("--root").arg(&root).args(args).stdout(Stdio::null())).unwrap();
        };
        install(&[]);
        assert!(root.join(started).is_symlink(), "{started}");
        assert!(root.join(PROGRAM).metadata().unwrap().permissions().mode() & 0o111 != 0);
        let drop_in = root.join("usr/lib/systemd/system/dunlin-agent.service.d/10-board.conf");
        assert_eq!(drop_in.is_file(), started.contains("systemd"), "{started}");
        std::fs::write(root.join("var/lib/dunlin/state"), "kept").unwrap();
        std::fs::write(root.join("etc/dunlin/agent.toml"), "# Changed.\n").unwrap();
        install(&[]);
        assert_eq!(std::fs::read_to_string(root.join("etc/dunlin/agent.toml")).unwrap(), "# Changed.\n");
        assert!(root.join("etc/dunlin/agent.toml.new").is_file());
        install(&["--remove"]);
        assert!(!root.join(PROGRAM).exists() && !root.join(started).is_symlink());
        assert_eq!(std::fs::read_to_string(root.join("var/lib/dunlin/state")).unwrap(), "kept");
        install(&["--purge"]);
        assert_eq!(left(&root), Vec::<PathBuf>::new());
    }
}

/// `NAME=VALUE` or `NAME = VALUE` of a recipe, without its quotes.
fn value<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
    line.unwrap_or_else(|| panic!("there is no {name}")).trim().trim_matches('"')
}

fn digest(program: &str, path: &Path) -> String {
    output(Command::new(program).arg(path)).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// What both build systems take from an archive is in it, under the names they use, and is licensed as they say.
#[test]
fn recipes_name_the_version_the_files_and_the_licences_that_are_there() {
    let yocto = source().join("yocto/meta-dunlin");
    let recipes = yocto.join("recipes-dunlin/dunlin-agent");
    let version = env!("CARGO_PKG_VERSION");
    let recipe = std::fs::read_to_string(recipes.join(format!("dunlin-agent_{version}.bb"))).unwrap();
    let layer = std::fs::read_to_string(yocto.join("conf/layer.conf")).unwrap();
    for name in ["BBPATH .", "BBFILES +", "BBFILE_PATTERN_meta-dunlin", "LAYERSERIES_COMPAT_meta-dunlin"] {
        assert!(!value(&layer, name).is_empty());
    }
    let buildroot = source().join("buildroot");
    let read = |path: &str| std::fs::read_to_string(buildroot.join(path)).unwrap();
    let make = read("package/dunlin-agent/dunlin-agent.mk");
    let hashes = read("package/dunlin-agent/dunlin-agent.hash");
    assert!(read("external.desc").starts_with("name: DUNLIN\n"));
    assert!(read("Config.in").contains("/package/dunlin-agent/Config.in"));
    assert_eq!(value(&make, "DUNLIN_AGENT_VERSION"), version);
    assert_eq!(value(&recipe, "LICENSE").replace(" | ", " OR "), env!("CARGO_PKG_LICENSE"));
    assert_eq!(value(&make, "DUNLIN_AGENT_LICENSE").replace(" or ", " OR "), env!("CARGO_PKG_LICENSE"));
    assert_eq!(value(&make, "DUNLIN_AGENT_LICENSE_FILES").split(' ').collect::<Vec<_>>(), LICENCES);
    for licence in LICENCES {
        let path = root().join(licence);
        assert!(recipe.contains(&format!("file://{licence};md5={}", digest("md5sum", &path))), "{licence}");
        assert!(
            hashes.contains(&format!("sha256  {}  {licence}\n", digest("sha256sum", &path))),
            "{licence}"
        );
    }
    let triples = recipe.split('"').filter(|word| word.contains("-unknown-linux-"));
    let triples: Vec<_> = triples.filter(|word| !word.contains('/')).collect();
    assert_eq!(triples.len(), 3);
    triples.iter().for_each(|triple| assert_eq!(cross::target(triple).unwrap().tier, 1, "{triple}"));
    let (name, _) = tarball::pack(&package(TRIPLES[1], None)).unwrap();
    let source_of_recipe = value(&recipe, "SRC_URI").trim_start_matches("file://");
    assert_eq!(source_of_recipe.replace("${PV}", "1.2.3").replace("${DUNLIN_TRIPLE}", TRIPLES[1]), name);
    assert!(read("package/dunlin-agent/Config.in").contains(&format!("/dunlin-agent-{version}\"\n")));
    for (text, source) in [(&recipe, "${S}/"), (&make, "$(@D)/")] {
        for path in text.split(source).skip(1).filter_map(|rest| rest.split([' ', '\n']).next()) {
            assert!(super::source().join(path.trim_end_matches("/.")).exists(), "there is no {path}");
        }
    }
}

/// A device whose image is updated by others: the agent's part, with a program in its place that tells what it is told to.
#[test]
fn an_image_is_kept_when_the_agent_serves_or_has_nothing_to_serve() {
    let folder = tempfile::tempdir().unwrap();
    let agent = folder.path().join("agent");
    let healthy = |code: u32| {
        std::fs::write(&agent, format!("#!/bin/sh\nexit {code}\n")).unwrap();
        std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut hook = Command::new(source().join("rootfs/usr/lib/dunlin/os-healthy"));
        let ended = hook.arg("1").env("AGENT_PROGRAM", &agent).stderr(Stdio::null()).status();
        ended.unwrap().success()
    };
    assert_eq!([0, 1, 3, 5].map(healthy), [true, false, true, false]);
}
