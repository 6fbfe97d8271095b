//! `cargo xtask dist`: an archive that runs in any folder.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::args::Args;
use crate::build;
use crate::files::{copy_tree, sha256};
use crate::house::{House, Profile, SHIPPED_MODELS};
use crate::server::{START_MAX, Server};
use crate::ui::{Step, finish};
use crate::{cross, deploy, http, sbom, setup, sh};

pub(crate) const USAGE: &str = "\
Builds target/dist/weir-VERSION-TARGET.tar.gz: the program, the bundled models, completions for bash, zsh and fish, manual pages, a systemd
unit, a bill of materials (CycloneDX), README.md, CHANGELOG.md, LICENSE and docs, without links; beside it its SHA-256. Then unpacks it
into another folder and runs it there; an archive that does not run is removed. The same files make the same bytes.

Options:
  --profile NAME    dist, the default: a small program, which takes minutes to link; or release, that of `cargo xtask build`, whose archive is
                    written to target/dist-release
  --target TRIPLE   aarch64-unknown-linux-gnu on another machine: compiled with aarch64-linux-gnu-gcc and aarch64-linux-gnu-g++, and run by
                    qemu-aarch64. x86_64-unknown-linux-musl: linked statically, with musl-gcc. Programs that are not on the PATH are
                    fetched from Debian and unpacked under target, and rustup adds the target

Environment:
  SOURCE_DATE_EPOCH   the time of every file in the archive, seconds; the default is the time of the last commit";

/// The shells with completions, and the file names that they search for.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "weir.bash"), ("zsh", "_weir"), ("fish", "weir.fish")];
/// Files of the repository that are included.
const FILES: [(&str, &str); 4] = [
    ("README.md", "README.md"),
    ("CHANGELOG.md", "CHANGELOG.md"),
    ("LICENSE", "LICENSE"),
    ("deploy/systemd/weir.service", "weir.service"),
];
const BILL: &str = "weir.cdx.json";
/// The newest glibc that the program may need: that of Ubuntu 22.04. The container images have a later one.
const GLIBC_MINOR_MAX: u32 = 35;
/// Where the names of an ELF program's libraries and their versions lie: at its beginning.
const NAMES_BYTES_MAX: usize = 16 << 20;
/// The first label of a friendly text.
const POSITIVE: &str = r#""label":"positive""#;
/// How long the start of a program of another platform may take, under an emulator.
const START_ELSEWHERE_MAX: Duration = Duration::from_secs(600);
/// The profiles that `--profile` takes.
const PROFILES: [Profile; 2] = [Profile::Dist, Profile::Release];

/// Most bytes of the program: it holds each component once, compressed.
fn program_bytes_max(profile: Profile) -> u64 {
    match profile {
        Profile::Dist => 60_000_000,
        Profile::Release => 95_000_000,
    }
}

/// The platform of an archive, and how its program is built.
#[derive(Debug)]
struct Platform {
    /// The triple in the archive's name.
    triple: String,
    profile: Profile,
    /// The programs of another one than this machine's.
    tools: Option<cross::Tools>,
    /// The built program.
    weir: PathBuf,
}

impl Platform {
    fn here(house: &House, profile: Profile) -> Result<Self> {
        let rustc = sh::stdout_of(sh::program(house, "rustc").arg("-vV"))?;
        let triple = rustc.lines().find_map(|line| line.strip_prefix("host: ")).context("`rustc -vV` names no host")?;
        Ok(Self { triple: triple.to_owned(), profile, tools: None, weir: house.weir_of(profile) })
    }

    /// A program of this platform.
    fn command(&self, program: &Path) -> Command {
        self.tools.as_ref().map_or_else(|| Command::new(program), |tools| tools.command(program))
    }
}

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let target = args.value("--target")?;
    let profile = args.value("--profile")?.map_or(Ok(Profile::Dist), |name| profile_named(&name))?;
    args.finish()?;
    let mut platform = Platform::here(house, profile)?;
    let target =
        match target.filter(|triple| *triple != platform.triple) {
            Some(triple) => {
                let known = || cross::TARGETS.each_ref().map(|target| target.triple).join(" or ");
                let target = cross::TARGETS.iter().find(|target| target.triple == triple);
                Some(target.with_context(|| {
                    format!("`--target` is `{triple}`, and takes {} or {}", platform.triple, known())
                })?)
            }
            None => None,
        };
    setup::ensure(house)?;
    build::components(house, &[])?;
    match target {
        Some(target) => {
            let tools = target.tools(house)?;
            target.build(house, &tools, profile)?;
            let weir = target.weir(house, profile);
            platform = Platform { triple: target.triple.to_owned(), profile, weir, tools: Some(tools) };
        }
        None => build::weir_of(house, profile)?,
    }
    let archive = archive(house, &platform)?;
    println!("{}", archive.display());
    Ok(())
}

fn profile_named(name: &str) -> Result<Profile> {
    let known = || PROFILES.map(Profile::name).join(" or ");
    let profile = PROFILES.into_iter().find(|profile| profile.name() == name);
    profile.with_context(|| format!("`--profile` is `{name}`, and takes {}", known()))
}

/// Packs the files of `cargo xtask build`, and runs the result.
pub(crate) fn check(house: &House) -> Result<()> {
    archive(house, &Platform::here(house, Profile::Release)?).map(drop)
}

fn archive(house: &House, platform: &Platform) -> Result<PathBuf> {
    let mut step = Step::begin("dist", "packs the program and its models");
    let packed = pack(house, &mut step, platform);
    let archive = match packed {
        Ok((archive, glibc)) => {
            let megabytes = fs::metadata(&archive).map_or(0, |file| file.len() / 1_000_000);
            let library = glibc.map_or("static".to_owned(), |glibc| format!("for glibc 2.{glibc} or later"));
            step.done(&format!("{} ({megabytes} MB), {library}", archive.display()));
            archive
        }
        Err(error) => {
            step.failed("");
            return Err(error);
        }
    };
    let mut step = Step::begin("dist", "unpacks it elsewhere and runs it");
    let result = try_out(house, &mut step, platform, &archive);
    if result.is_err() {
        // An archive that does not run must not be mistaken for one that does.
        let _ = fs::remove_file(&archive);
    }
    finish(step, result.map(|()| "it runs".to_owned()))?;
    Ok(archive)
}

/// Where an archive is written, below the target folder. Another one for a program that is not small, so that it is not mistaken for
/// the archive that is published.
fn archive_folder(profile: Profile) -> &'static str {
    match profile {
        Profile::Dist => "dist",
        Profile::Release => "dist-release",
    }
}

/// `weir --version` without the name.
fn version(platform: &Platform) -> Result<String> {
    let version = sh::stdout_of(platform.command(&platform.weir).arg("--version"))?;
    Ok(version.strip_prefix("weir ").with_context(|| format!("`weir --version` says `{version}`"))?.to_owned())
}

/// Gathers the files in a folder, and packs it twice: both archives must be equal. Returns the archive and the minor version of glibc that
/// the program needs, if it is not linked statically.
fn pack(house: &House, step: &mut Step, platform: &Platform) -> Result<(PathBuf, Option<u32>)> {
    let version = version(platform)?;
    let name = format!("weir-{version}-{}", platform.triple);
    let dist = house.target.join(archive_folder(platform.profile));
    let folder = dist.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    step.show_progress("the models");
    gather(house, platform, &folder)?;
    let program = folder.join("weir");
    let bytes = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let size = bytes.len() as u64;
    let size_max = program_bytes_max(platform.profile);
    ensure!(size <= size_max, "the program has {size} bytes, and {size_max} at most are expected");
    let glibc = glibc_minor(&bytes[..bytes.len().min(NAMES_BYTES_MAX)]);
    ensure!(glibc.is_some() != platform.triple.ends_with("musl"), "the program has the C library of another platform");
    let has_symbols = has_section(&bytes, ".symtab").context("the program is not a whole ELF file")?;
    ensure!(!has_symbols, "the program has a table of symbols: set `strip` in its profile");
    if let Some(glibc) = glibc.filter(|glibc| *glibc > GLIBC_MINOR_MAX) {
        bail!("the program needs glibc 2.{glibc}, and Ubuntu 22.04 has 2.{GLIBC_MINOR_MAX}");
    }
    for (shell, file) in COMPLETIONS {
        step.show_progress(&format!("completions for {shell}"));
        let script = sh::stdout_of(platform.command(&program).args(["completions", shell]))?;
        let path = folder.join("completions").join(file);
        fs::create_dir_all(folder.join("completions"))?;
        fs::write(&path, format!("{script}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    step.show_progress("manual pages");
    sh::check(step, platform.command(&program).arg("man").arg(folder.join("man/man1")))?;
    step.show_progress("the bill of materials");
    fs::write(folder.join(BILL), sbom::render(house, &version, &platform.triple)?).context("cannot write the bill")?;
    step.show_progress("compresses");
    let (archive, again) = (dist.join(format!("{name}.tar.gz")), dist.join(format!("{name}.again")));
    let time = source_time(house)?;
    compress(house, step, &dist, &name, &time, &archive)?;
    // Other times and another order in the folder, and the same archive.
    let copy = dist.join("again");
    copy_tree(&folder, &copy.join(&name))?;
    fs::set_permissions(copy.join(&name).join("weir"), fs::Permissions::from_mode(0o755))?;
    compress(house, step, &copy, &name, &time, &again)?;
    let sum = sha256(&archive)?;
    ensure!(sum == sha256(&again)?, "the same files make two different archives");
    fs::remove_file(&again)?;
    fs::remove_dir_all(&copy)?;
    let line = format!("{sum}  {name}.tar.gz\n");
    fs::write(dist.join(format!("{name}.tar.gz.sha256")), line).context("cannot write the checksum")?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    Ok((archive, glibc))
}

/// The time of every file in the archive, in seconds.
fn source_time(house: &House) -> Result<String> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(time) => {
            time.parse::<u64>()
                .with_context(|| format!("SOURCE_DATE_EPOCH is `{time}`, and not a number of seconds"))?;
            Ok(time)
        }
        // An archive of the sources has no commits.
        Err(_) => {
            Ok(sh::stdout_of(sh::program(house, "git").args(["log", "-1", "--format=%ct"])).unwrap_or("0".to_owned()))
        }
    }
}

/// Packs a folder with nothing of this machine in the archive: sorted names, one time, no owner, the modes of files and programs.
fn compress(house: &House, step: &mut Step, parent: &Path, name: &str, time: &str, archive: &Path) -> Result<()> {
    let mut tar = sh::program(house, "tar");
    tar.args(["--create", "--use-compress-program=gzip -n", "--format=ustar", "--sort=name", "--owner=0", "--group=0"]);
    tar.args(["--numeric-owner", "--mode=u+rwX,go+rX,go-w", &format!("--mtime=@{time}"), "--file"]).arg(archive);
    sh::check(step, tar.arg("--directory").arg(parent).arg(name)).map(drop)
}

/// Whether a 64-bit little-endian ELF program has a section of this name; `None` if it is not one, or is cut.
fn has_section(program: &[u8], name: &str) -> Option<bool> {
    let number = |at: usize, bytes: usize| {
        let field = program.get(at..at.checked_add(bytes)?)?;
        Some(field.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    };
    program.strip_prefix(b"\x7fELF\x02\x01")?;
    // Fields of the headers `Elf64_Ehdr` and `Elf64_Shdr`.
    let (table, entry_bytes, count, names) = (number(40, 8)?, number(58, 2)?, number(60, 2)?, number(62, 2)?);
    let entry = |index: usize| table.checked_add(index.checked_mul(entry_bytes)?);
    let names = number(entry(names)?.checked_add(24)?, 8)?;
    let mut found = false;
    for index in 0..count {
        let at = names.checked_add(number(entry(index)?, 4)?)?;
        let text = program.get(at..)?.split(|byte| *byte == 0).next()?;
        found |= text == name.as_bytes();
    }
    Some(found)
}

/// The newest version 2.N of glibc that an ELF program names.
fn glibc_minor(program: &[u8]) -> Option<u32> {
    const PREFIX: &[u8] = b"GLIBC_2.";
    let mut newest = None;
    for (at, window) in program.windows(PREFIX.len()).enumerate() {
        if window == PREFIX {
            let digits = program[at + PREFIX.len()..].iter().take_while(|byte| byte.is_ascii_digit());
            let number =
                digits.fold(0u32, |number, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
            newest = newest.max(Some(number));
        }
    }
    newest
}

/// The program, the models and the documents, as files.
fn gather(house: &House, platform: &Platform, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    };
    copy(&platform.weir, &folder.join("weir"))?;
    for (from, to) in FILES {
        copy(&house.root.join(from), &folder.join(to))?;
    }
    copy_tree(&house.root.join("docs"), &folder.join("docs"))?;
    for model in build::shipped_models(house)? {
        copy_tree(&house.root.join(SHIPPED_MODELS).join(&model), &folder.join("models").join(&model))?;
    }
    Ok(())
}

/// Unpacks an archive into a folder of its own, looks for links, and runs the program that is there.
fn try_out(house: &House, step: &mut Step, platform: &Platform, archive: &Path) -> Result<()> {
    let scratch = std::env::temp_dir().join(format!("weir-dist-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let result = try_in(house, step, platform, archive, &scratch);
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    result
}

fn try_in(house: &House, step: &mut Step, platform: &Platform, archive: &Path, scratch: &Path) -> Result<()> {
    let sum = archive.with_extension("gz.sha256");
    sh::check(
        step,
        sh::program(house, "sha256sum").arg("-c").arg(&sum).current_dir(archive.parent().unwrap_or(scratch)),
    )?;
    sh::check(step, sh::program(house, "tar").arg("-xzf").arg(archive).arg("-C").arg(scratch))?;
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    let folder = scratch.join(name.trim_end_matches(".tar.gz"));
    no_links(&folder)?;
    let completions = COMPLETIONS.map(|(_, file)| format!("completions/{file}"));
    let pages = ["man/man1/weir.1", "man/man1/weir-serve.1"];
    let files = ["weir.service", BILL, "LICENSE", "models/sentiment/config.json"];
    for file in files.into_iter().chain(pages).chain(completions.iter().map(String::as_str)) {
        let bytes = fs::metadata(folder.join(file)).map_or(0, |file| file.len());
        ensure!(bytes > 0, "the archive has no {file}, or an empty one");
    }
    deploy::check_bill(house, step, &folder.join(BILL))?;
    let weir = folder.join("weir");
    let emulator_path = std::env::var_os("PATH").unwrap_or_default();
    // Nothing of this workspace may help: neither the folder it runs in nor a variable.
    let isolated = |program: &Path, arguments: &[&str]| {
        let mut command = platform.command(program);
        command.current_dir(scratch).env_clear().args(arguments).stdin(Stdio::null());
        if platform.tools.is_some() {
            command.env("PATH", &emulator_path);
        }
        command
    };
    sh::check(step, &mut isolated(&weir, &["models", "check"]))?;
    let text = scratch.join("text.txt");
    fs::write(&text, "What a wonderful, generous evening!\n")?;
    let run = ["run", "--quiet", "--task", "sentiment", "text.txt"];
    let output = sh::stdout_of(&mut isolated(&weir, &run))?;
    if !output.contains(POSITIVE) {
        bail!("the unpacked program answers `{output}`");
    }
    step.show_progress("weir serve");
    let start_max = if platform.tools.is_some() { START_ELSEWHERE_MAX } else { START_MAX };
    let server = Server::spawn(&mut isolated(&weir, &["serve"]), start_max)?;
    let mut answer = String::new();
    let texts = r#"{"inputs": ["What a wonderful, generous evening!"]}"#;
    http::request(server.address, "POST", "/v1/classify", Some(texts))?.body.read_to_string(&mut answer)?;
    ensure!(answer.contains(&format!("[[{{{POSITIVE}")), "the unpacked server answers `{answer}`");
    server.stop()?;
    // Without its models it says what is missing, and how to give it.
    let copy_folder = scratch.join("alone");
    fs::create_dir_all(&copy_folder)?;
    let alone = copy_folder.join("weir");
    fs::copy(&weir, &alone)?;
    match sh::stdout_of(&mut isolated(&alone, &run)) {
        Err(error) if format!("{error:#}").contains("--models-dir") => Ok(()),
        Err(error) => Err(error.context("copied without its models, the program does not say what is missing")),
        Ok(output) => bail!("copied without its models, the program answers `{output}`"),
    }
}

/// Fails at the first link below a folder.
fn no_links(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_symlink() {
            bail!("{} is a link", path.display());
        }
        if path.is_dir() {
            no_links(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_glibc_is_found() {
        assert_eq!(glibc_minor(b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE\0"), Some(34));
        assert_eq!(glibc_minor(b"\0GLIBC_PRIVATE\0"), None);
    }

    #[test]
    fn sections_of_a_program_are_found() {
        let program = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(has_section(&program, ".text"), Some(true));
        assert_eq!(has_section(&program, ".tex"), Some(false));
        assert_eq!(has_section(&program[..program.len() / 2], ".text"), None);
        assert_eq!(has_section(b"#!/bin/sh", ".text"), None);
    }

    #[test]
    fn profiles_are_those_of_the_workspace() {
        assert_eq!(profile_named("dist").unwrap(), Profile::Dist);
        assert_eq!(
            profile_named("debug").unwrap_err().to_string(),
            "`--profile` is `debug`, and takes dist or release"
        );
        let manifest = fs::read_to_string(House::find().root.join("Cargo.toml")).unwrap();
        for profile in PROFILES {
            assert!(manifest.contains(&format!("[profile.{}]", profile.name())), "{profile:?}");
        }
    }
}
