//! The store component in `wasi:keyvalue@0.2.0-draft`, which wasmCloud and wasmtime implement. The bucket is that of
//! `WEIR_KEYVALUE_BUCKET`, by default `default`, or the unnamed one of a host that has no other.

mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub)]
    wit_bindgen::generate!({
        inline: "
            package weir:store-keyvalue;
            world store-keyvalue {
                import wasi:keyvalue/store@0.2.0-draft;
                import wasi:keyvalue/atomics@0.2.0-draft;
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
    type Position = u64;

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

    fn keys(&self, from: Option<u64>) -> Result<(Vec<String>, Option<u64>), HostError> {
        let page = self.0.list_keys(from).map_err(error)?;
        Ok((page.keys, page.cursor))
    }

    fn increment(&self, key: &str, delta: u64) -> Result<u64, HostError> {
        atomics::increment(&self.0, key, delta).map_err(error)
    }
}

fn error(error: Error) -> HostError {
    match error {
        Error::NoSuchStore => HostError::NoSuchStore,
        Error::AccessDenied => HostError::AccessDenied,
        Error::Other(reason) => HostError::Other(reason),
    }
}
