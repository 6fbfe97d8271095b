//! The program for another platform than this machine's: cargo links it with Debian's compiler for the platform, and its precompiler and the
//! finished program run here, under an emulator where the processor is another one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build::finish;
use crate::files::{Key, Stamp, write_if_changed};
use crate::house::{COMPONENTS, House};
use crate::kernels::require_program;
use crate::sh;
use crate::ui::Step;

/// A platform that can be built elsewhere.
#[derive(Debug)]
pub(crate) struct Target {
    /// Its triple.
    pub(crate) triple: &'static str,
    /// The C compiler, which also links.
    compiler: &'static str,
    /// The C++ compiler, for a platform that has one.
    compiler_cpp: Option<&'static str>,
    /// The emulator of another processor, and the folder of the platform's libraries.
    emulator: Option<(&'static str, &'static str)>,
}

/// 64-bit Arm, and a program that is linked statically with another C library.
pub(crate) static TARGETS: [Target; 2] = [
    Target {
        triple: "aarch64-unknown-linux-gnu",
        compiler: "aarch64-linux-gnu-gcc",
        compiler_cpp: Some("aarch64-linux-gnu-g++"),
        emulator: Some(("qemu-aarch64", "/usr/aarch64-linux-gnu")),
    },
    Target { triple: "x86_64-unknown-linux-musl", compiler: "musl-gcc", compiler_cpp: None, emulator: None },
];

impl Target {
    /// The built program.
    pub(crate) fn weir(&self, house: &House) -> PathBuf {
        self.built(house).join("weir")
    }

    /// A command that runs a program of the platform.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let Some((emulator, libraries)) = self.emulator else { return Command::new(program) };
        let mut command = Command::new(emulator);
        command.args(["-L", libraries]).arg(program);
        command
    }

    /// Builds the program. The components in target/components must have been built.
    pub(crate) fn build(&self, house: &House) -> Result<()> {
        let emulator = self.emulator.map(|(program, _)| program);
        for program in [Some(self.compiler), self.compiler_cpp, emulator].into_iter().flatten() {
            require_program(program)?;
        }
        let triple = self.triple;
        let targets = sh::stdout_of(sh::program(house, "rustup").args(["target", "list", "--installed"]))?;
        if !targets.lines().any(|line| line == triple) {
            bail!("rustup has no {triple}: `rustup target add {triple}`");
        }
        let mut step = Step::begin("precompiler", &format!("builds weir-precompile for {triple}"));
        let built = sh::check(&mut step, self.cargo(house).args(["--bin", "weir-precompile"]));
        finish(step, built.map(|_| format!("target/{triple}/release/weir-precompile")))?;

        let components = self.folder(house).join("components");
        let mut step = Step::begin("precompile", &format!("compiles the components for {triple}"));
        let precompiled = self.precompile(house, &mut step, &components);
        finish(step, precompiled.map(|()| format!("target/{triple}/components")))?;

        let mut step = Step::begin("weir", &format!("builds weir for {triple} with the components inside"));
        let mut cargo = self.cargo(house);
        cargo.args(["--bin", "weir"]).env("WEIR_EMBED_DIR", components);
        let built = sh::check(&mut step, &mut cargo);
        finish(step, built.map(|_| format!("target/{triple}/release/weir")))
    }

    fn folder(&self, house: &House) -> PathBuf {
        house.target.join(self.triple)
    }

    fn built(&self, house: &House) -> PathBuf {
        self.folder(house).join("release")
    }

    /// `cargo build` for the platform: the same packages each time, so that nothing compiles twice.
    fn cargo(&self, house: &House) -> Command {
        let mut command = sh::cargo(house);
        let variable = self.triple.replace('-', "_");
        command.args(["build", "--release", "--target", self.triple, "-p", "weir", "-p", "weir-runtime"]);
        command.env_remove("WEIR_EMBED_DIR");
        sh::show_progress(&mut command);
        command.env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), self.compiler);
        command.env(format!("CC_{variable}"), self.compiler);
        if let Some(compiler) = self.compiler_cpp {
            command.env(format!("CXX_{variable}"), compiler);
        }
        command
    }

    fn precompile(&self, house: &House, step: &mut Step, folder: &Path) -> Result<()> {
        let precompiler = self.built(house).join("weir-precompile");
        let compiler = Key::default().file(&precompiler)?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        for component in COMPONENTS {
            let (from, to) = (component.delivered(house), folder.join(format!("{}.cwasm", component.name)));
            let key = compiler.clone().file(&from)?;
            let stamp = Stamp::new(house, &format!("precompile-{}-{}", self.triple, component.name), key);
            if stamp.fresh() && to.exists() {
                continue;
            }
            step.show_progress(component.name);
            let scratch = folder.join(format!("{}.new", component.name));
            sh::check(step, self.command(&precompiler).arg(&from).arg(&scratch))?;
            let code = fs::read(&scratch).with_context(|| format!("cannot read {}", scratch.display()))?;
            write_if_changed(&to, &code)?;
            fs::remove_file(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
            stamp.set()?;
        }
        Ok(())
    }
}
