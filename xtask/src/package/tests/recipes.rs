//! Recipes for those who build images.
use std::collections::BTreeSet;

use super::*;

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
    let others = format!("rootfs/{DOCUMENTS}/{THIRD_PARTIES}");
    let own_and_others = [&LICENCES[..], &[&others]].concat();
    assert_eq!(value(&make, "DUNLIN_AGENT_LICENSE_FILES").split(' ').collect::<Vec<_>>(), own_and_others);
    assert!(
        package(TRIPLES[1], None)
            .installed()
            .unwrap()
            .0
            .contains_key(&format!("{DOCUMENTS}/{THIRD_PARTIES}"))
    );
    for licence in LICENCES {
        let path = root().join(licence);
        assert!(recipe.contains(&format!("file://{licence};md5={}", digest("md5sum", &path))), "{licence}");
        assert!(
            hashes.contains(&format!("sha256  {}  {licence}\n", digest("sha256sum", &path))),
            "{licence}"
        );
    }
    let triples = recipe.split('"').filter(|word| word.contains("-unknown-linux-"));
    let triples: BTreeSet<_> = triples.filter(|word| !word.contains('/')).collect();
    assert_eq!(triples.len(), 3);
    triples.iter().for_each(|triple| assert_eq!(cross::target(triple).unwrap().tier, 1, "{triple}"));
    let (name, _) = tarball::pack(&package(TRIPLES[1], None)).unwrap();
    let source_of_recipe = value(&recipe, "SRC_URI").trim_start_matches("file://${DUNLIN_ARCHIVES}/");
    assert_eq!(source_of_recipe.replace("${PV}", "1.2.3").replace("${DUNLIN_TRIPLE}", TRIPLES[1]), name);
    assert!(read("package/dunlin-agent/Config.in").contains(&format!("/dunlin-agent-{version}\"\n")));
    for (text, start) in [(&recipe, "${S}/"), (&make, "$(@D)/")] {
        for path in text.split(start).skip(1).filter_map(|rest| rest.split([' ', '\n']).next()) {
            assert!(source().join(path.trim_end_matches("/.")).exists(), "there is no {path}");
        }
    }
}

/// What both build systems call arm begins with processors that the program is too new for.
#[test]
fn recipes_take_no_arm_processor_that_is_older_than_the_program() {
    let recipe = source().join("yocto/meta-dunlin/recipes-dunlin/dunlin-agent");
    let recipe = recipe.join(format!("dunlin-agent_{}.bb", env!("CARGO_PKG_VERSION")));
    let recipe = std::fs::read_to_string(recipe).unwrap();
    let triples = recipe.lines().filter_map(|line| line.strip_prefix("DUNLIN_TRIPLE:")?.split_once(" = "));
    let machines = |wanted: &str| -> Vec<&str> {
        triples.clone().filter(|(_, triple)| triple.contains(wanted)).map(|(machine, _)| machine).collect()
    };
    assert_eq!(machines("armv7-"), ["armv7a", "armv7ve"]);
    assert_eq!(machines("aarch64-"), ["aarch64"]);
    assert!(value(&recipe, "COMPATIBLE_HOST").ends_with("if d.getVar('DUNLIN_TRIPLE') else 'null'}"));
    let config = std::fs::read_to_string(source().join("buildroot/package/dunlin-agent/Config.in")).unwrap();
    let (_, depends) = config.split_once("\tdepends on ").unwrap();
    let (depends, _) = depends.split_once("\thelp\n").unwrap();
    let depends: Vec<&str> = depends.split(|c: char| c.is_whitespace() || "|\\".contains(c)).collect();
    let depends: Vec<&str> = depends.into_iter().filter(|word| !word.is_empty()).collect();
    assert_eq!(depends, ["BR2_aarch64", "BR2_x86_64", "BR2_ARM_CPU_ARMV7A", "BR2_ARM_CPU_ARMV8A"]);
}

/// Lines that Buildroot's `check-package` would complain of, by what is easily got wrong.
fn complaints(path: &str, text: &str) -> Vec<String> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let package = name.strip_suffix(".mk").filter(|package| *package != "external").unwrap_or_default();
    let (hashes, title) = ("#".repeat(80), format!("# {package}"));
    let head = [&hashes, "#", &title, "#", &hashes, ""];
    let lines: Vec<&str> = text.lines().collect();
    let wrong = |number: usize, line: &str, before: &str| {
        let help = line.strip_prefix("\t  ").unwrap_or_default();
        line.trim_end() != line
            || line.is_empty() && (before.is_empty() || number + 1 == lines.len())
            || name == "Config.in" && (line.starts_with(' ') || help.chars().count() > 62)
            || !package.is_empty() && head.get(number).is_some_and(|asked| *asked != line)
            || name.ends_with(".hash") && !line.starts_with('#') && line.split("  ").count() != 3
    };
    let mut found = Vec::new();
    if !text.is_empty() && !text.ends_with('\n') {
        found.push(format!("{path}: the last line has no end"));
    }
    for (number, line) in lines.iter().enumerate() {
        let before = number.checked_sub(1).map_or("", |before| lines[before]);
        found.extend(wrong(number, line, before).then(|| format!("{path}:{}: {line}", number + 1)));
    }
    found
}

#[test]
fn buildroot_s_files_have_the_form_that_it_asks_for() {
    let mut tree = Tree::default();
    tree.take("", &source().join("buildroot")).unwrap();
    assert_eq!(tree.0.values().filter(|entry| entry.bytes.is_some()).count(), 6);
    for (path, entry) in tree.0 {
        let text = String::from_utf8(entry.bytes.unwrap_or_default()).unwrap();
        assert_eq!(complaints(&path, &text), Vec::<String>::new());
    }
}

#[test]
fn what_buildroot_would_complain_of_is_found() {
    let count = |path: &str, text: &str| complaints(path, text).len();
    let help = |width: usize| format!("config A\n\tbool \"a\"\n\thelp\n\t  {}\n", "a".repeat(width));
    assert_eq!([62, 63].map(|width| count("Config.in", &help(width))), [0, 1]);
    assert_eq!(count("Config.in", "config A\n  bool \"a\" \n\n\n"), 2);
    assert_eq!(count("a/a.mk", &format!("{0}\n#\n# b\n#\n{0}\n\nA_SITE = b\n", "#".repeat(80))), 1);
    assert_eq!(count("a.hash", "# Locally computed\nsha256  12  a\nsha256 12  a\n"), 1);
    assert_eq!(count("a.hash", "sha256  12  a"), 1);
}
