//! The workspace, called the house in this crate: its folders, and the tables of components, guests and packages.

use std::path::{Path, PathBuf};

/// A crate built for wasm32-wasip2.
#[derive(Debug)]
pub(crate) struct Component {
    /// The cargo package.
    pub(crate) package: &'static str,
    /// The file is `target/components/{name}.wasm`.
    pub(crate) name: &'static str,
}

/// The components that are built into `weir`: one line each.
pub(crate) const COMPONENTS: &[Component] = &[
    Component { package: "weir-gateway", name: "gateway" },
    Component { package: "weir-generate", name: "generate" },
    Component { package: "weir-infer", name: "infer" },
    Component { package: "weir-adapter", name: "adapter" },
    Component { package: "weir-upstream", name: "upstream" },
];

/// Packages that cargo builds and tests by a command of their own: llguidance wants `preserve_order` of serde_json, and features are
/// united over the packages of one command. Elsewhere the members of JSON objects are sorted.
pub(crate) const SEPARATE_PACKAGES: &[&str] = &["weir-generate"];

/// The components that are plugged into another when they are built, and satisfy its imports.
pub(crate) const PLUGS: &[(Component, &str)] = &[(Component { package: "weir-session", name: "session" }, "gateway")];

/// What other hosts need besides the gateway and infer: the parts of [`crate::portable`], one line each.
pub(crate) const PORTABLE_PARTS: &[Component] = &[
    Component { package: "weir-store-memory", name: "store" },
    Component { package: "weir-store-keyvalue", name: "store_keyvalue" },
    Component { package: "weir-store-keyvalue-draft2", name: "store_keyvalue_draft2" },
    Component { package: "weir-no-generate", name: "no_generate" },
    Component { package: "weir-infer-remote", name: "infer_remote" },
];

/// `wasi:nn` for hosts that have none. Cargo builds it by a command of its own, because it is compiled for the vectors of wasm.
pub(crate) const NN: Component = Component { package: "weir-nn-component", name: "nn" };

/// The flags of [`NN`]. Without relaxed SIMD, which gains nothing: every host has these vectors, and results are the same on all.
pub(crate) const NN_RUSTFLAGS: &str = "-C target-feature=+simd128";

/// The guest programs of the tests (folders of tests/guests, and the component of examples/step): one line each.
pub(crate) const GUESTS: &[Component] = &[
    Component { package: "nn-probe", name: "nn_probe" },
    Component { package: "infer-stub", name: "infer_stub" },
    Component { package: "generate-stub", name: "generate_stub" },
    Component { package: "step-guest", name: "step_guest" },
    Component { package: "adapter-guest", name: "adapter_guest" },
    Component { package: "step-example", name: "step_example" },
];

/// The crates of the native host. Cargo unites the features of the packages of a build, so every host build
/// and test names exactly these: one set of features, and nothing compiles twice.
pub(crate) const HOST_PACKAGES: &[&str] = &[
    "embed-example",
    "weir",
    "weir-config",
    "weir-edge",
    "weir-nn",
    "weir-python",
    "weir-runtime",
    "weir-tests",
    "weir-wasi",
];

/// The crates that are tested natively in the dev profile: they need neither wasmtime nor an engine.
pub(crate) const LIGHT_PACKAGES: &[&str] = &[
    "weir-adapter",
    "weir-adapters",
    "weir-auth",
    "weir-bench",
    "weir-codec",
    "weir-core",
    "weir-events",
    "weir-expression",
    "weir-fuzz",
    "weir-gateway",
    "weir-guest",
    "weir-infer",
    "weir-kernels",
    "weir-lm",
    "weir-session",
    "weir-store",
    "weir-telemetry",
    "weir-tls",
    "weir-upstream",
    "weir-websocket",
    "xtask",
];

/// The folder of the bundled models, each a folder with a `config.json`.
pub(crate) const SHIPPED_MODELS: &str = "host/nn/models";

/// What the components add to the release profile: small output of one codegen unit. Settings of the same profile rather than
/// a profile of their own, so that the proc macros of both builds are the same artifacts.
pub(crate) const COMPONENT_CONFIG: [&str; 2] = ["profile.release.lto=true", "profile.release.codegen-units=1"];

/// A cargo profile of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// That of the tests and the demo.
    Release,
    /// That of archives: smaller, and all crates are optimized together, which takes minutes.
    Dist,
}

impl Profile {
    /// Its name in Cargo.toml, and of its folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dist => "dist",
        }
    }
}

/// The target of the components.
pub(crate) const WASM_TARGET: &str = "wasm32-wasip2";

/// Whether a toolchain has the standard library of a target.
pub(crate) fn has_target(sysroot: &Path, target: &str) -> bool {
    let library = sysroot.join("lib/rustlib").join(target).join("lib");
    std::fs::read_dir(library).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libstd-")))
    })
}

impl Component {
    /// The output of cargo.
    pub(crate) fn built(&self, house: &House) -> PathBuf {
        let file = format!("{}.wasm", self.package.replace('-', "_"));
        house.target.join(WASM_TARGET).join("release").join(file)
    }

    /// The file that the host and the tests use.
    pub(crate) fn delivered(&self, house: &House) -> PathBuf {
        house.components().join(format!("{}.wasm", self.name))
    }

    /// The precompiled file, which `weir` embeds.
    pub(crate) fn precompiled(&self, house: &House) -> PathBuf {
        house.components().join(format!("{}.cwasm.zst", self.name))
    }
}

/// The workspace's folders.
#[derive(Debug)]
pub(crate) struct House {
    /// The folder of the workspace's Cargo.toml.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
}

impl House {
    /// Finds the workspace this program belongs to.
    pub(crate) fn find() -> Self {
        // Cargo sets the package's current path; the path at compile time is for a program that is started without cargo.
        let package = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
        let root = Path::new(&package).ancestors().nth(2).unwrap_or(Path::new(".")).to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => root.join(dir),
            None => root.join("target"),
        };
        Self { root, target }
    }

    /// The folder of the built components.
    pub(crate) fn components(&self) -> PathBuf {
        self.target.join("components")
    }

    /// The `weir` program.
    pub(crate) fn weir(&self) -> PathBuf {
        self.weir_of(Profile::Release)
    }

    /// The `weir` program of a profile.
    pub(crate) fn weir_of(&self, profile: Profile) -> PathBuf {
        self.target.join(profile.name()).join("weir")
    }

    /// The program that precompiles a component for this machine.
    pub(crate) fn precompiler(&self) -> PathBuf {
        self.target.join("release").join("weir-precompile")
    }

    /// The Python environment of the tests.
    pub(crate) fn venv(&self) -> PathBuf {
        self.target.join("venv")
    }

    /// The files of xtask: stamps and toolchains.
    pub(crate) fn keep(&self) -> PathBuf {
        self.target.join("xtask")
    }
}
