//! The program for another platform than this machine's: cargo links it with Debian's compiler for the platform, and its precompiler and the
//! finished program run here, under an emulator where the processor is another one.

mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use self::tools::Kind;
pub(crate) use self::tools::Tools;
use crate::files::{Key, Stamp, write_if_changed};
use crate::house::{COMPONENTS, House, Profile};
use crate::ui::{Step, finish};
use crate::{setup, sh};

/// A platform that can be built elsewhere.
#[derive(Debug)]
pub(crate) struct Target {
    /// Its triple.
    pub(crate) triple: &'static str,
    kind: Kind,
}

/// 64-bit Arm, and a program that is linked statically with another C library.
pub(crate) static TARGETS: [Target; 2] = [
    Target {
        triple: "aarch64-unknown-linux-gnu",
        kind: Kind::Processor { prefix: "aarch64-linux-gnu", emulator: "qemu-aarch64" },
    },
    Target { triple: "x86_64-unknown-linux-musl", kind: Kind::Musl },
];

impl Target {
    /// The compilers and the emulator.
    pub(crate) fn tools(&self, house: &House) -> Result<Tools> {
        Tools::ensure(house, self.triple, &self.kind)
    }

    /// The built program.
    pub(crate) fn weir(&self, house: &House, profile: Profile) -> PathBuf {
        self.built(house, profile).join("weir")
    }

    /// Builds the program. The components in target/components must have been built.
    pub(crate) fn build(&self, house: &House, tools: &Tools, profile: Profile) -> Result<()> {
        let (triple, name) = (self.triple, profile.name());
        setup::by_rustup(house, triple)?;
        let mut step = Step::begin("precompiler", &format!("builds weir-precompile for {triple}"));
        let built = sh::check(&mut step, self.cargo(house, tools, profile).args(["--bin", "weir-precompile"]));
        finish(step, built.map(|_| format!("target/{triple}/{name}/weir-precompile")))?;

        let components = self.folder(house).join("components");
        let mut step = Step::begin("precompile", &format!("compiles the components for {triple}"));
        let precompiled = self.precompile(house, tools, profile, &mut step, &components);
        finish(step, precompiled.map(|()| format!("target/{triple}/components")))?;

        let mut step = Step::begin("weir", &format!("builds weir for {triple} with the components inside"));
        let mut cargo = self.cargo(house, tools, profile);
        cargo.args(["--bin", "weir"]).env("WEIR_EMBED_DIR", components);
        let built = sh::check(&mut step, &mut cargo);
        finish(step, built.map(|_| format!("target/{triple}/{name}/weir")))
    }

    fn folder(&self, house: &House) -> PathBuf {
        house.target.join(self.triple)
    }

    fn built(&self, house: &House, profile: Profile) -> PathBuf {
        self.folder(house).join(profile.name())
    }

    /// `cargo build` for the platform: the same packages each time, so that nothing compiles twice.
    fn cargo(&self, house: &House, tools: &Tools, profile: Profile) -> Command {
        let mut command = sh::cargo(house);
        command.args(["build", "--profile", profile.name(), "--target", self.triple]);
        command.args(["-p", "weir", "-p", "weir-runtime"]);
        command.env_remove("WEIR_EMBED_DIR");
        sh::show_progress(&mut command);
        tools.set(&mut command, self.triple);
        command
    }

    fn precompile(&self, house: &House, tools: &Tools, profile: Profile, step: &mut Step, folder: &Path) -> Result<()> {
        let precompiler = self.built(house, profile).join("weir-precompile");
        let compiler = Key::default().file(&precompiler)?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        for component in COMPONENTS {
            let (from, to) = (component.delivered(house), folder.join(format!("{}.cwasm.zst", component.name)));
            let key = compiler.clone().file(&from)?;
            let stamp = Stamp::new(house, &format!("precompile-{}-{}", self.triple, component.name), key);
            if stamp.fresh() && to.exists() {
                continue;
            }
            step.show_progress(component.name);
            let scratch = folder.join(format!("{}.new", component.name));
            sh::check(step, tools.command(&precompiler).arg(&from).arg(&scratch))?;
            let code = fs::read(&scratch).with_context(|| format!("cannot read {}", scratch.display()))?;
            write_if_changed(&to, &code)?;
            fs::remove_file(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
            stamp.set()?;
        }
        Ok(())
    }
}
