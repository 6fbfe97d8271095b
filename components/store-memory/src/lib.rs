//! The store component in memory: what it stores is lost with its instance, and instances share nothing. A host that creates an instance
//! for each request, or ends idle ones, therefore loses channels, sessions and executions.

use std::rc::Rc;

use weir_store::{Instance, Memory};

struct Component;
weir_store::bindings::export!(Component);

impl Instance for Component {
    type Store = Memory;

    fn store() -> Rc<Memory> {
        thread_local! {
            static STORE: Rc<Memory> = Rc::default();
        }
        STORE.with(Rc::clone)
    }
}
