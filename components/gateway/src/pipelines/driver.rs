//! Drives an execution: saves its checkpoints, stores its events, starts and stops its runs.

use std::{
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{AbortHandle, Abortable, FusedFuture as _, LocalBoxFuture},
    stream::FuturesUnordered,
};
use weir_codec::pipelines::execution::ExecutionSummary;
use weir_core::{
    pipelines::{Batch, Execution, Run},
    time::Now,
};

use super::{
    Pipelines,
    persistence::{self, OwnershipLost},
    running::RunningExecution,
    steps, upload,
};
use crate::platform::clock::{self, Deadline};

/// Something is due that cannot begin yet: the clock is looked at again so much later. What it waits for wakes the driver.
const LATER_MS: u64 = 50;
const NS_PER_MS: u64 = 1_000_000;

/// The runs in progress, and how to cancel each.
#[derive(Default)]
pub(super) struct Runs {
    running: FuturesUnordered<LocalBoxFuture<'static, Run>>,
    handles: Vec<(Run, AbortHandle)>,
}

/// Drives an execution to its end. No task awaits this: it ends with the execution, or with the instance.
pub(super) async fn drive(pipelines: &'static Pipelines, live: Rc<RunningExecution>) {
    let mut runs = Runs::default();
    let mut saving: Option<LocalBoxFuture<'static, Result<u64, OwnershipLost>>> = None;
    let mut storing: Option<LocalBoxFuture<'static, Result<(Batch, u64), OwnershipLost>>> = None;
    let mut timer: Option<(u64, LocalBoxFuture<'static, ()>)> = None;
    let mut cancelled = pin!(live.cancelled().fuse());
    let mut lease = pin!(live.keep_lease().fuse());
    loop {
        if live.is_lost() {
            break;
        }
        let now = clock::now();
        let due_ns = {
            let mut execution = live.execution.borrow_mut();
            if execution.poll_timeout().is_some_and(|at_ns| at_ns <= now.monotonic_ns) {
                execution.handle_timer(now);
            }
            if saving.is_none()
                && let Some(checkpoint) = execution.poll_checkpoint(now)
            {
                saving = Some(persistence::save(pipelines, live.clone(), checkpoint).boxed_local());
            }
            runs.stop_and_start_of(&mut execution, pipelines, &live, now);
            if storing.is_none()
                && let Some(batch) = execution.poll_events(now)
            {
                storing = Some(upload::store(live.clone(), batch).boxed_local());
            }
            if execution.is_drained() && saving.is_none() && storing.is_none() {
                break;
            }
            let later_ns = now.monotonic_ns.saturating_add(LATER_MS * NS_PER_MS);
            execution.poll_timeout().map(|at_ns| if at_ns <= now.monotonic_ns { later_ns } else { at_ns })
        };
        if timer.as_ref().map(|(at_ns, _)| *at_ns) != due_ns {
            timer = due_ns.map(|at_ns| (at_ns, Deadline::at(at_ns).passed().boxed_local()));
        }
        let (mut saved, mut stored) = (None, None);
        let mut changed = pin!(live.changed.wait());
        poll_fn(|context| {
            let mut go_on = changed.as_mut().poll(context).is_ready();
            go_on |= !cancelled.is_terminated() && cancelled.as_mut().poll(context).is_ready();
            go_on |= !lease.is_terminated() && lease.as_mut().poll(context).is_ready();
            if let Some(future) = &mut saving
                && let Poll::Ready(number) = future.poll_unpin(context)
            {
                saving = None;
                (saved, go_on) = (number.ok(), true);
            }
            if let Some(future) = &mut storing
                && let Poll::Ready(count) = future.poll_unpin(context)
            {
                storing = None;
                (stored, go_on) = (count.ok(), true);
            }
            go_on |= runs.poll_ended(context);
            if let Some((_, future)) = &mut timer
                && future.poll_unpin(context).is_ready()
            {
                (timer, go_on) = (None, true);
            }
            if go_on { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        if let Some(number) = saved {
            live.execution.borrow_mut().handle_checkpoint_saved(number);
        }
        if let Some((batch, count)) = stored {
            live.execution.borrow_mut().handle_stored(count);
            let mut reliability = pipelines.reliability.borrow_mut();
            for sequenced in batch.events.iter().filter(|sequenced| sequenced.seq <= count) {
                reliability.handle_event(clock::now().monotonic_ns, &sequenced.event);
            }
            live.moved.ring();
        }
    }
    // What still runs has no say any more.
    drop((runs, saving, storing));
    if !live.is_lost() {
        upload::report_end(&live).await;
    }
    if live.is_lost() || persistence::end(pipelines, &live).await.is_err() {
        eprintln!("warn: {} is owned by another instance now", live.execution.borrow().id());
        pipelines.abandon(&live);
        return;
    }
    let status = live.execution.borrow().status(clock::now().monotonic_ns);
    pipelines.ended(&live, ExecutionSummary::from(status));
    live.finish();
    live.release().await;
}

impl Runs {
    /// Cancels the runs that are to stop, and starts those that can. Returns whether any was started.
    pub(super) fn stop_and_start(
        &mut self,
        pipelines: &'static Pipelines,
        live: &Rc<RunningExecution>,
        now: Now,
    ) -> bool {
        self.stop_and_start_of(&mut live.execution.borrow_mut(), pipelines, live, now)
    }

    fn stop_and_start_of(
        &mut self,
        execution: &mut Execution,
        pipelines: &'static Pipelines,
        live: &Rc<RunningExecution>,
        now: Now,
    ) -> bool {
        while let Some(run) = execution.poll_stop() {
            self.stop(run);
        }
        let before = self.handles.len();
        while live.is_owned(now)
            && let Some(work) = execution.poll_start(now)
        {
            let (handle, registration) = AbortHandle::new_pair();
            let run = work.run;
            let step = Abortable::new(steps::run(pipelines, live.clone(), work), registration);
            self.handles.push((run, handle));
            self.running.push(step.map(move |_| run).boxed_local());
        }
        self.handles.len() > before
    }

    /// Polls the runs. Returns whether any has ended.
    pub(super) fn poll_ended(&mut self, context: &mut Context<'_>) -> bool {
        let mut ended = false;
        while let Poll::Ready(Some(run)) = self.running.poll_next_unpin(context) {
            self.handles.retain(|(other, _)| *other != run);
            ended = true;
        }
        ended
    }

    fn stop(&mut self, run: Run) {
        if let Some(at) = self.handles.iter().position(|(other, _)| *other == run) {
            self.handles.swap_remove(at).1.abort();
        }
    }
}
