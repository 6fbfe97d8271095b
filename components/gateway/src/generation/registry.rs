//! The generations of this instance.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use weir_auth::refusal;
use weir_codec::http::problem::Problem;

use super::running::RunningGeneration;
use crate::platform::settings::Settings;

/// Maximum number of concurrent generations in this instance.
const GENERATIONS_MAX: usize = 256;
/// Maximum number of concurrent generations of one user, if users are identified.
const USER_GENERATIONS_MAX: usize = 64;
/// `Retry-After` where one of these bounds is reached, in milliseconds.
const RETRY_AFTER_MS: u32 = 1000;

/// The generations of this instance by their ids.
#[derive(Default)]
pub(super) struct Registry {
    running: RefCell<BTreeMap<String, Rc<RunningGeneration>>>,
    /// The users of the generations that are starting, by id.
    starting: RefCell<BTreeMap<String, String>>,
    /// True once recovery has started.
    pub(super) is_recovering: Cell<bool>,
}

impl Registry {
    /// The registry of this instance.
    pub(super) fn current() -> &'static Self {
        thread_local! {
            // One thread, and one value for the lifetime of the instance.
            static REGISTRY: &'static Registry = Box::leak(Box::default());
        }
        REGISTRY.with(|registry| *registry)
    }

    /// Takes a permit for a generation that is starting.
    pub(super) fn admit(&'static self, id: &str, user: &str) -> Result<Admission, Problem> {
        let (running, mut starting) = (self.running.borrow(), self.starting.borrow_mut());
        let total = running.len() + starting.len();
        let own = running.values().filter(|other| other.owner == user).count();
        let own = own + starting.values().filter(|other| *other == user).count();
        let is_shared = Settings::current().is_ok_and(|settings| settings.auth.required);
        if is_shared && own >= USER_GENERATIONS_MAX {
            let detail = format!("you have {own} generations that have not ended, and may have {USER_GENERATIONS_MAX}");
            return Err(Problem::refused(429, "throttled", "Too many generations", detail, Some(RETRY_AFTER_MS)));
        }
        if total >= GENERATIONS_MAX {
            let detail =
                format!("this server has {total} generations that have not ended, and may have {GENERATIONS_MAX}");
            return Err(Problem::refused(503, "overloaded", "Too many generations", detail, Some(RETRY_AFTER_MS)));
        }
        starting.insert(id.to_owned(), user.to_owned());
        Ok(Admission { registry: self, id: id.to_owned(), user: user.to_owned() })
    }

    pub(super) fn insert(&self, generation: Rc<RunningGeneration>) {
        self.running.borrow_mut().insert(generation.id.clone(), generation);
    }

    pub(super) fn remove(&self, id: &str) {
        self.running.borrow_mut().remove(id);
    }

    /// Whether a generation is starting or running here, so that its lease is this instance's.
    pub(super) fn has(&self, id: &str) -> bool {
        self.running.borrow().contains_key(id) || self.starting.borrow().contains_key(id)
    }

    /// A generation that runs here.
    pub(super) fn find(&self, id: &str) -> Option<Rc<RunningGeneration>> {
        self.running.borrow().get(id).cloned()
    }
}

/// A permit for a generation that is starting, returned when it is dropped.
pub(super) struct Admission {
    registry: &'static Registry,
    id: String,
    pub(super) user: String,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.registry.starting.borrow_mut().remove(&self.id);
    }
}

/// 404, for a generation that is missing or that this user may not read.
pub(super) fn not_found(path: &str) -> Problem {
    refusal::not_found(weir_auth::identity::NotFound, path)
}
