use super::*;

mod archive;
mod debian;
mod image;
mod init;
mod recipes;
mod scripts;

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
        assert_eq!(device, board.device, "{name}");
        let api = settings["api"].as_table().unwrap();
        let most = |key: &str| u64::try_from(api[key].as_integer().unwrap()).unwrap();
        let (body, bodies) = (most("body_bytes_max"), most("bodies_bytes_max"));
        assert!(body > 0 && 2 * body <= bodies, "{name}");
        // A byte of JSON takes up to six; beside them stand the idle agent and the models.
        let models = 4 * device.budgets.model_ram_bytes_max;
        assert!(6 * bodies + (8 << 20) + models <= bound, "{name}");
        assert_eq!((settings.len(), api.len()), (2, 2), "{name}");
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

/// Programs that come as the agent's own updates are started from the folder of its state.
#[test]
fn every_mount_of_the_state_folder_lets_programs_be_started() {
    let mut tree = Tree::default();
    tree.take("", &source()).unwrap();
    let texts = tree.0.into_values().filter_map(|entry| String::from_utf8(entry.bytes?).ok());
    let mounts: Vec<String> = texts.filter(|text| text.contains("\nWhere=/var/lib/dunlin")).collect();
    assert!(!mounts.is_empty(), "no mount unit of the state folder");
    for mount in mounts {
        let options = mount.lines().find_map(|line| line.strip_prefix("Options=")).unwrap_or_default();
        let options: Vec<&str> = options.split(',').collect();
        assert!(options.contains(&"nosuid") && options.contains(&"nodev"), "{mount}");
        assert!(!options.contains(&"noexec"), "{mount}");
    }
}
