//! The compilers and emulators of other platforms: those on the PATH, or Debian's, unpacked under target.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{Apt, fetch_once, starter};
use crate::files::{on_path, write_if_changed};
use crate::house::House;
use crate::ui::Step;

/// Version of this file's procedure: a change makes older results stale.
const RECIPE: &str = "1";
/// The folder of the unpacked packages in the folder of [`fetch_once`].
const PREFIX: &str = "prefix";

/// What a platform needs.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Another processor: Debian's cross compiler, whose programs begin with this name, and the emulator.
    Processor { prefix: &'static str, emulator: &'static str },
    /// This machine's compiler with the headers of musl. It compiles C only: librdkafka's C++ part is built with this machine's library,
    /// and linked nowhere.
    Musl,
}

/// Programs of a platform.
#[derive(Debug)]
pub(crate) struct Tools {
    linker: PathBuf,
    /// The C compiler.
    compiler: PathBuf,
    compiler_cpp: PathBuf,
    /// Where the platform's names of other programs begin, such as `…/aarch64-linux-gnu-`; those of this machine without it.
    binutils: Option<String>,
    /// The emulator of another processor, and the folder of the platform's libraries.
    emulator: Option<(PathBuf, PathBuf)>,
}

impl Tools {
    /// Finds the programs, or fetches them.
    pub(crate) fn ensure(house: &House, triple: &'static str, kind: &Kind) -> Result<Self> {
        match kind {
            Kind::Processor { prefix, emulator } => cross(house, triple, prefix, emulator),
            Kind::Musl => musl(house, triple),
        }
    }

    /// Sets what cargo, the crate `cc` and the configure script of librdkafka read. The last knows plain names only, so `cc` gets the
    /// programs of this machine by names of their own.
    pub(crate) fn set(&self, command: &mut Command, triple: &str) {
        let variable = triple.replace('-', "_");
        command.env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), &self.linker);
        for (name, program) in [("CC", &self.compiler), ("CXX", &self.compiler_cpp)] {
            command.env(name, program).env(format!("{name}_{variable}"), program);
        }
        command.env("HOST_CC", "cc").env("HOST_CXX", "c++").env("HOST_AR", "ar");
        if let Some(binutils) = &self.binutils {
            for program in ["ar", "ranlib", "nm", "objdump", "strip", "ld"] {
                command.env(program.to_uppercase(), format!("{binutils}{program}"));
            }
            command.env(format!("AR_{variable}"), format!("{binutils}ar"));
        }
    }

    /// A command that runs a program of the platform.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let Some((emulator, libraries)) = &self.emulator else { return Command::new(program) };
        let mut command = Command::new(emulator);
        // The libraries of the emulator itself are not those of the program.
        command.args(["-U", "LD_LIBRARY_PATH", "-L"]).arg(libraries).arg(program);
        command
    }
}

/// Debian's cross compiler and emulator.
fn cross(house: &House, triple: &'static str, prefix: &str, emulator: &str) -> Result<Tools> {
    let (gcc, cpp) = (format!("{prefix}-gcc"), format!("{prefix}-g++"));
    if let (Some(compiler), Some(compiler_cpp), Some(emulator)) =
        (on_path(&[&gcc]), on_path(&[&cpp]), on_path(&[emulator]))
    {
        let binutils = Some(format!("{prefix}-"));
        let emulator = Some((emulator, Path::new("/usr").join(prefix)));
        return Ok(Tools { linker: compiler.clone(), compiler, compiler_cpp, binutils, emulator });
    }
    let doing = format!("fetches Debian's compiler and emulator for {triple}, and unpacks them under target");
    let package = format!("g++-{prefix}");
    let folder = fetch_once(house, triple, &doing, RECIPE, &format!("bin/{emulator}"), |apt, folder, step| {
        let wanted = [package.as_str(), "qemu-user"];
        let mut names = apt.missing_libraries(&wanted)?;
        let parts = apt.all_dependencies(&package)?;
        names.extend(parts.into_iter().filter(|name| name.ends_with("-cross") || name.contains(prefix)));
        names.extend(wanted.map(str::to_owned));
        names.sort();
        names.dedup();
        let unpacked = unpack(apt, folder, step, &names)?;
        let bin = unpacked.join("usr/bin");
        // The compiler finds its parts beside itself, and the C library by this.
        let sysroot = format!("--sysroot={}", unpacked.display());
        for (name, arguments) in [(&gcc, Some(sysroot.as_str())), (&cpp, Some(sysroot.as_str()))] {
            starter(&folder.join("bin").join(name), &unpacked, &bin.join(name), arguments)?;
        }
        for program in ["ar", "ranlib", "nm", "objdump", "strip", "ld"] {
            let name = format!("{prefix}-{program}");
            starter(&folder.join("bin").join(&name), &unpacked, &bin.join(&name), None)?;
        }
        starter(&folder.join("bin").join(emulator), &unpacked, &bin.join(emulator), None)?;
        Ok(format!("{} packages", names.len()))
    })
    .with_context(|| format!("{gcc}, {cpp} and {emulator} are not all on the PATH, and Debian's cannot be fetched"))?;
    let bin = folder.join("bin");
    Ok(Tools {
        linker: bin.join(&gcc),
        compiler: bin.join(&gcc),
        compiler_cpp: bin.join(&cpp),
        binutils: Some(format!("{}-", bin.join(prefix).display())),
        emulator: Some((bin.join(emulator), folder.join(PREFIX).join("usr").join(prefix))),
    })
}

/// The compiler of this machine with musl's headers and libraries.
fn musl(house: &House, triple: &'static str) -> Result<Tools> {
    const PROGRAM: &str = "musl-gcc";
    // Rust brings what a static program begins with and links. `musl-gcc` would link a program that needs the dynamic linker of musl.
    let tools =
        |compiler| Tools { linker: "cc".into(), compiler, compiler_cpp: "c++".into(), binutils: None, emulator: None };
    if let Some(compiler) = on_path(&[PROGRAM]) {
        return Ok(tools(compiler));
    }
    let doing = "fetches Debian's musl and unpacks it under target";
    let compiler = format!("bin/{PROGRAM}");
    let folder = fetch_once(house, triple, doing, RECIPE, &compiler, |apt, folder, step| {
        let names = ["musl", "musl-dev", "musl-tools"].map(str::to_owned);
        let unpacked = unpack(apt, folder, step, &names)?;
        let processor = triple.split('-').next().unwrap_or_default();
        let specs = unpacked.join(format!("usr/lib/{processor}-linux-musl/musl-gcc.specs"));
        let text = fs::read_to_string(&specs).with_context(|| format!("cannot read {}", specs.display()))?;
        // It names the installed folders.
        let text = text.replace("/usr/", &format!("{}/usr/", unpacked.display()));
        write_if_changed(&specs, text.as_bytes())?;
        let script = folder.join(&compiler);
        let text = format!("#!/bin/sh\nexec gcc \"$@\" -specs \"{}\"\n", specs.display());
        write_if_changed(&script, text.as_bytes())?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).context("cannot make the script executable")?;
        Ok(names.join(", "))
    })
    .context("there is no `musl-gcc`, and Debian's cannot be fetched")?;
    Ok(tools(folder.join(compiler)))
}

/// Fetches packages and unpacks them; returns the folder.
fn unpack(apt: &Apt<'_>, folder: &Path, step: &mut Step, names: &[String]) -> Result<PathBuf> {
    apt.fetch(step, names)?;
    let unpacked = folder.join(PREFIX);
    apt.unpack(step, &unpacked)?;
    Ok(unpacked)
}
