//! Reads of streams.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use wit_bindgen::{StreamReader, StreamResult};

/// Reads at most `items_max` items: waits for some if `wait`, else returns those that are available.
pub async fn read_up_to<T: 'static>(
    stream: &mut StreamReader<T>,
    items_max: usize,
    wait: bool,
) -> (StreamResult, Vec<T>) {
    let mut reading = pin!(stream.read(Vec::with_capacity(items_max)));
    if wait {
        return reading.await;
    }
    let at_once = poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await;
    match at_once {
        Poll::Ready(read) => read,
        Poll::Pending => reading.as_mut().cancel(),
    }
}
