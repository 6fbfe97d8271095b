//! The store component in `wasi:keyvalue@0.2.0-draft2`, which Spin implements. The bucket is that of `WEIR_KEYVALUE_BUCKET`, by default
//! `default`.
//!
//! This version also has compare-and-swap, which the store does not use: see decision 38.

mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub)]
    wit_bindgen::generate!({
        inline: "
            package weir:store-keyvalue;
            world store-keyvalue {
                import wasi:keyvalue/store@0.2.0-draft2;
                import wasi:keyvalue/atomics@0.2.0-draft2;
            }
        ",
        path: "wit",
        world: "weir:store-keyvalue/store-keyvalue",
        generate_all,
    });
}

use std::rc::Rc;

use bindings::wasi::keyvalue::{
    atomics,
    store::{self, Error},
};
use weir_store::{Bucket, BucketHost, HostError, Instance, Keyvalue};

type Store = Keyvalue<BucketHost<HostBucket>>;

struct Component;
weir_store::bindings::export!(Component);

impl Instance for Component {
    type Store = Store;

    fn store() -> Rc<Store> {
        thread_local! {
            static STORE: Rc<Store> = Rc::new(Keyvalue::new(BucketHost::default()));
        }
        STORE.with(Rc::clone)
    }
}

struct HostBucket(store::Bucket);

impl Bucket for HostBucket {
    type Position = String;

    fn open(name: &str) -> Result<Self, HostError> {
        store::open(name).map(Self).map_err(error)
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, HostError> {
        self.0.get(key).map_err(error)
    }

    fn set(&self, key: &str, value: &[u8]) -> Result<(), HostError> {
        self.0.set(key, value).map_err(error)
    }

    fn delete(&self, key: &str) -> Result<(), HostError> {
        self.0.delete(key).map_err(error)
    }

    fn keys(&self, from: Option<String>) -> Result<(Vec<String>, Option<String>), HostError> {
        let page = self.0.list_keys(from.as_deref()).map_err(error)?;
        Ok((page.keys, page.cursor))
    }

    fn increment(&self, key: &str, delta: u64) -> Result<u64, HostError> {
        let out_of_range = |_| HostError::Other(format!("the number under {key} is out of range"));
        let delta = i64::try_from(delta).map_err(out_of_range)?;
        let sum = atomics::increment(&self.0, key, delta).map_err(error)?;
        u64::try_from(sum).map_err(out_of_range)
    }
}

fn error(error: Error) -> HostError {
    match error {
        Error::NoSuchStore => HostError::NoSuchStore,
        Error::AccessDenied => HostError::AccessDenied,
        Error::Other(reason) => HostError::Other(reason),
    }
}
