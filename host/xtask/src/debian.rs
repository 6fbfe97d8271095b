//! The wasm32-wasip2 target from Debian's packages, for machines that rustup's server does not answer.
//!
//! Debian has a recent compiler for its browsers (`rustc-web`) without this target's standard library, and the target's C library
//! (`wasi-libc`) in a later suite. Both are unpacked under target, since installed they would conflict with rustup. The linkers
//! come from rustup's toolchain, and the standard library is built once from Debian's source. No step needs root, and the mirror
//! is the one that apt is configured with.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::apt::{Apt, starter};
use crate::files::{Key, Stamp, copy_if_changed, write_if_changed};
use crate::house::{House, WASM_TARGET, has_target};
use crate::sh;
use crate::ui::{Step, finish};

/// The package of the compiler; the others are read from its dependencies.
const COMPILER_PACKAGE: &str = "rustc-web";
/// The source of the standard library, of the compiler's version.
const SOURCE_PACKAGE: &str = "rust-web-src";
/// The target's C library, and the suite whose version supports wasip2.
const LIBC_PACKAGE: &str = "wasi-libc";
const LIBC_SUITE: &str = "forky";
/// The files of it that the target links.
const LIBC_FILES: [&str; 3] = ["crt1-command.o", "crt1-reactor.o", "libc.a"];

/// The workspace's `rust-version`.
const RUST_VERSION_MIN: &str = env!("CARGO_PKG_RUST_VERSION");
/// Version of this file's procedure: a change makes older results stale.
const RECIPE: &str = "1";

/// The compiler for the components, if `setup` has selected Debian's.
pub(crate) fn selected_compiler(house: &House) -> Option<PathBuf> {
    let rustc = folder(house).join("rustc");
    (selection_file(house).exists() && rustc.exists()).then_some(rustc)
}

/// Selects rustup's compiler again; the built files stay.
pub(crate) fn deselect(house: &House) -> Result<()> {
    match fs::remove_file(selection_file(house)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("cannot remove the selection"),
        _ => Ok(()),
    }
}

/// Creates the toolchain if it does not exist, and selects it.
pub(crate) fn install(house: &House) -> Result<()> {
    let linkers = linkers(house)?;
    let stamp = Stamp::new(house, "debian", Key::default().text(RECIPE).text(&linkers.to_string_lossy()));
    if !(stamp.fresh() && has_target(&folder(house).join("prefix/usr"), WASM_TARGET)) {
        let mut step = Step::begin("packages", "fetches Debian's compiler and unpacks it under target");
        let version = packages(house, &linkers, &mut step);
        finish(step, version)?;
        let mut step = Step::begin("std", &format!("builds the standard library for {WASM_TARGET} (1 to 3 minutes)"));
        let built = standard_library(house, &mut step);
        finish(step, built)?;
        stamp.set()?;
    }
    write_if_changed(&selection_file(house), b"debian\n")?;
    Step::begin("setup", "selects the toolchain of the components").done("Debian's compiler builds the components");
    Ok(())
}

fn folder(house: &House) -> PathBuf {
    house.keep().join("debian")
}

fn selection_file(house: &House) -> PathBuf {
    house.keep().join("toolchain")
}

/// The folder of rustup's `rust-lld` and `wasm-component-ld`.
fn linkers(house: &House) -> Result<PathBuf> {
    let rustc = |what: [&str; 2]| sh::stdout_of(sh::program(house, "rustc").args(what));
    let bin = Path::new(&rustc(["--print", "sysroot"])?).join("lib/rustlib").join(host(house)?).join("bin");
    for tool in ["rust-lld", "wasm-component-ld"] {
        if !bin.join(tool).exists() {
            bail!("{} has no `{tool}`: install the pinned toolchain with rustup", bin.display());
        }
    }
    Ok(bin)
}

/// The triple of this machine.
fn host(house: &House) -> Result<String> {
    let version = sh::stdout_of(sh::program(house, "rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| anyhow!("`rustc -vV` names no host"))
}

/// Fetches and unpacks everything, and writes the wrapper; returns the compiler's version.
fn packages(house: &House, linkers: &Path, step: &mut Step) -> Result<String> {
    let folder = folder(house);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let system = Apt::new(house, &folder.join("system"), None)?;
    system.update(step)?;
    let mut names = vec![COMPILER_PACKAGE.to_owned(), SOURCE_PACKAGE.to_owned()];
    let std_dev = system.dependency(COMPILER_PACKAGE, "libstd-rust")?;
    let std = system.dependency(&std_dev, "libstd-rust")?;
    names.push(system.dependency(&std, "libllvm")?);
    names.extend([std_dev, std]);
    system.fetch(step, &names)?;

    // The mirror of this machine's own suite has the later one too.
    let output = sh::stdout_of(sh::program(house, "apt-get").args([
        "indextargets",
        "--format",
        "$(RELEASE) $(COMPONENT) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    let mirror = output
        .lines()
        .filter_map(|line| line.split_once(" main "))
        .find(|(release, _)| !release.contains('-'))
        .map(|(_, mirror)| mirror)
        .ok_or_else(|| anyhow!("apt knows no Debian mirror: `apt-get indextargets` lists none"))?;
    let later = Apt::new(house, &folder.join(LIBC_SUITE), Some(&format!("{mirror} {LIBC_SUITE} main")))?;
    later.update(step)?;
    later.fetch(step, &[LIBC_PACKAGE.to_owned()])?;

    let prefix = folder.join("prefix");
    for apt in [&system, &later] {
        apt.unpack(step, &prefix)?;
    }

    let usr = prefix.join("usr");
    let tools = usr.join("lib/rustlib").join(host(house)?).join("bin");
    symlink(linkers, &tools).with_context(|| format!("cannot link {}", tools.display()))?;
    for file in LIBC_FILES {
        let to = library(&usr).join("self-contained").join(file);
        copy_if_changed(&usr.join("lib").join(WASM_TARGET).join(file), &to)?;
    }
    wrapper(&folder, &usr, house)
}

/// Writes a `rustc` that finds its own libraries; returns its version.
fn wrapper(folder: &Path, usr: &Path, house: &House) -> Result<String> {
    let path = folder.join("rustc");
    starter(&path, usr.parent().unwrap_or(usr), &usr.join("bin/rustc"), None)?;
    let version = sh::stdout_of(sh::program(house, &path).arg("--version"))?;
    let number = version.split(' ').nth(1).unwrap_or_default();
    if !at_least(number, RUST_VERSION_MIN) {
        bail!("Debian's {COMPILER_PACKAGE} here is {number}, and Weir needs {RUST_VERSION_MIN}");
    }
    Ok(version)
}

fn library(usr: &Path) -> PathBuf {
    usr.join("lib/rustlib").join(WASM_TARGET).join("lib")
}

/// Builds the standard library as a dependency of an empty crate, and copies it to the compiler's folder.
fn standard_library(house: &House, step: &mut Step) -> Result<String> {
    let folder = folder(house);
    let (empty, build) = (folder.join("empty"), folder.join("std"));
    let manifest = "[package]\nname = \"empty\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[lib]\n[workspace]\n";
    write_if_changed(&empty.join("Cargo.toml"), manifest.as_bytes())?;
    write_if_changed(&empty.join("src/lib.rs"), b"")?;
    let mut command = sh::cargo(house);
    command
        .current_dir(&empty)
        .env("RUSTC", folder.join("rustc"))
        .env("RUSTC_BOOTSTRAP", "1")
        // Without it the components cannot be optimized as a whole (LTO).
        .env("RUSTFLAGS", "-Cembed-bitcode=yes")
        .args(["build", "--release", "-Zbuild-std=std,panic_abort,panic_unwind", "--target", WASM_TARGET])
        .arg("--target-dir")
        .arg(&build);
    sh::check(step, &mut command)?;
    let usr = folder.join("prefix/usr");
    let mut copied = 0;
    for entry in fs::read_dir(build.join(WASM_TARGET).join("release/deps")).context("cargo left no libraries")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".rlib") && !name.starts_with("libempty-") {
            copy_if_changed(&path, &library(&usr).join(&name))?;
            copied += 1;
        }
    }
    for done in [build, empty] {
        fs::remove_dir_all(&done).with_context(|| format!("cannot remove {}", done.display()))?;
    }
    Ok(format!("{copied} libraries"))
}

/// Compares versions number by number.
fn at_least(version: &str, min: &str) -> bool {
    let numbers = |text: &str| -> Vec<u64> { text.split('.').map_while(|part| part.parse().ok()).collect() };
    numbers(version) >= numbers(min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(at_least("1.96.0", "1.95"));
        assert!(at_least("1.95", "1.95"));
        assert!(!at_least("1.85.0", "1.95"));
        assert!(!at_least("", "1.95"));
    }
}
