//! A response body that is read once from the inner service and served to many readers.
//!
//! Readers share chunks. A slow reader holds them in memory, but does not delay the other readers. The chunks count
//! against the budget of all fills until the last reader is dropped. If the fill stops recording, the first reader
//! takes over the rest of the body and reads it at its own pace, as if there were no cache.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use larder_core::{
    Reason,
    kernel::{ReservedBytes, Scope},
};
use parking_lot::Mutex;
use pin_project_lite::pin_project;

use crate::body::{BoxError, BrokenOff};

/// A body that the fill writes, and that the client of the fill and coalesced clients read.
#[derive(Debug)]
pub(crate) struct Recording<R> {
    state: Mutex<State<R>>,
    announced: Option<u64>,
    scope: Scope,
}

#[derive(Debug)]
struct State<R> {
    chunks: Vec<Bytes>,
    bytes: usize,
    end: RecordingEnd<R>,
    waiting: Vec<Waker>,
    reserved: usize,
    /// The bytes that this recording has taken from the budget. They return to it when the last reader is dropped.
    taken: ReservedBytes,
}

#[derive(Debug)]
enum RecordingEnd<R> {
    Open,
    /// The body is complete. Trailers, if any, go to the first reader that reaches the end.
    Complete(Option<HeaderMap>),
    /// The fill has stopped recording. The first reader that gets here takes over the rest of the body; other readers
    /// fail.
    Rest(Option<Pin<Box<R>>>),
    Broken(Option<BoxError>),
}

/// The limit that a chunk exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyTooLarge {
    /// The size limit of one body.
    Limit,
    /// The budget that all fills share.
    Budget,
}

impl BodyTooLarge {
    pub(crate) const fn reason(self) -> Reason {
        match self {
            Self::Limit => Reason::TooLarge,
            Self::Budget => Reason::FillBudget,
        }
    }
}

impl<R> Recording<R> {
    pub(crate) fn new(announced: Option<u64>, scope: Scope, taken: ReservedBytes) -> Arc<Self> {
        let state = State {
            chunks: Vec::new(),
            bytes: 0,
            end: RecordingEnd::Open,
            waiting: Vec::new(),
            reserved: 0,
            taken,
        };
        Arc::new(Self { state: Mutex::new(state), announced, scope })
    }

    /// Adds a chunk. Readers get it even if it exceeds a limit.
    pub(crate) fn push(&self, chunk: Bytes, limit: usize) -> Result<(), BodyTooLarge> {
        let mut state = self.state.lock();
        let bytes = chunk.len();
        state.bytes += bytes;
        state.chunks.push(chunk);
        let fits = if state.bytes > limit {
            Err(BodyTooLarge::Limit)
        } else if state.bytes <= state.reserved || state.taken.take(bytes) {
            Ok(())
        } else {
            Err(BodyTooLarge::Budget)
        };
        wake(state);
        fits
    }

    /// Ends the body, and returns all of it in one piece.
    pub(crate) fn complete(&self, trailers: Option<HeaderMap>) -> Bytes {
        let mut state = self.state.lock();
        state.end = RecordingEnd::Complete(trailers);
        let whole = match &state.chunks[..] {
            [] => Bytes::new(),
            chunks => {
                let mut whole = BytesMut::with_capacity(state.bytes);
                chunks.iter().for_each(|chunk| whole.extend_from_slice(chunk));
                whole.freeze()
            }
        };
        wake(state);
        whole
    }

    /// Whether nothing has been recorded yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().bytes == 0
    }

    /// Reserves budget for a whole body of this length. Returns `false` if the budget does not suffice.
    pub(crate) fn reserve(&self, announced: u64) -> bool {
        let mut state = self.state.lock();
        let Ok(announced) = usize::try_from(announced) else { return false };
        let missing = announced.saturating_sub(state.bytes);
        let reserved = state.taken.take(missing);
        if reserved {
            state.reserved = announced;
        }
        reserved
    }

    /// Whether there is a reader besides the client of the fill.
    pub(crate) fn has_company(self: &Arc<Self>) -> bool {
        // The three other references belong to the fill, to the response in flight that waiters find, and to the
        // client's reader.
        Arc::strong_count(self) > 3
    }

    /// Whether there is still a reader, if the response is no longer in flight.
    pub(crate) fn is_read(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
    }

    /// Fails a recording that is still open when its fill is dropped, so that no reader waits for ever.
    pub(crate) fn break_off(&self) {
        let mut state = self.state.lock();
        if matches!(state.end, RecordingEnd::Open) {
            state.end = RecordingEnd::Broken(Some(BrokenOff(None).into()));
            wake(state);
        }
    }

    /// Ends the recording with the error of the body.
    pub(crate) fn fail(&self, error: BoxError) {
        let mut state = self.state.lock();
        state.end = RecordingEnd::Broken(Some(error));
        wake(state);
    }

    /// Stops recording. The first reader continues with the body itself.
    pub(crate) fn hand_over(&self, rest: Pin<Box<R>>) {
        let mut state = self.state.lock();
        state.end = RecordingEnd::Rest(Some(rest));
        wake(state);
    }

    /// Creates a reader that begins at the first chunk. The first reader is the client of the fill.
    pub(crate) fn reader(self: &Arc<Self>) -> Reader<R> {
        let announced = self.announced;
        Reader { recording: Some(Arc::clone(self)), announced, at: 0, read: 0, rest: None }
    }
}

fn wake<R>(mut state: parking_lot::MutexGuard<'_, State<R>>) {
    let waiting = std::mem::take(&mut state.waiting);
    drop(state);
    waiting.into_iter().for_each(Waker::wake);
}

pin_project! {
    /// A reader of a recording.
    #[derive(Debug)]
    pub(crate) struct Reader<R> {
        // `None` once the reader has taken the rest of the body, which releases the recorded chunks.
        recording: Option<Arc<Recording<R>>>,
        announced: Option<u64>,
        at: usize,
        read: u64,
        rest: Option<(Pin<Box<R>>, Scope)>,
    }
}

enum NextFrame<R> {
    Chunk(Bytes),
    Trailers(HeaderMap),
    End,
    Rest(Pin<Box<R>>),
    Broken(BoxError),
    Wait,
}

impl<R> Reader<R>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    pub(crate) fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        if let Some(recording) = this.recording {
            match step(recording, this.at, cx) {
                NextFrame::Chunk(chunk) => {
                    *this.read += chunk.len() as u64;
                    return Poll::Ready(Some(Ok(Frame::data(chunk))));
                }
                NextFrame::Trailers(trailers) => {
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                NextFrame::End => return Poll::Ready(None),
                NextFrame::Broken(error) => return Poll::Ready(Some(Err(error))),
                NextFrame::Wait => return Poll::Pending,
                NextFrame::Rest(rest) => {
                    *this.rest = Some((rest, recording.scope.clone()));
                    *this.recording = None;
                }
            }
        }
        let Some((rest, scope)) = this.rest else { return Poll::Ready(None) };
        let _entered = scope.enter();
        rest.as_mut().poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        if let Some((rest, _)) = &self.rest {
            return rest.is_end_stream();
        }
        let Some(recording) = &self.recording else { return true };
        let state = recording.state.lock();
        self.at >= state.chunks.len() && matches!(state.end, RecordingEnd::Complete(None))
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.announced {
            Some(announced) => SizeHint::with_exact(announced.saturating_sub(self.read)),
            None => SizeHint::default(),
        }
    }
}

fn step<R>(recording: &Recording<R>, at: &mut usize, cx: &Context<'_>) -> NextFrame<R> {
    let mut state = recording.state.lock();
    if let Some(chunk) = state.chunks.get(*at) {
        *at += 1;
        return NextFrame::Chunk(chunk.clone());
    }
    match &mut state.end {
        RecordingEnd::Complete(trailers) => {
            trailers.take().map_or(NextFrame::End, NextFrame::Trailers)
        }
        RecordingEnd::Rest(rest) => match rest.take() {
            Some(rest) => NextFrame::Rest(rest),
            None => NextFrame::Broken(BrokenOff(None).into()),
        },
        RecordingEnd::Broken(error) => match error.take() {
            Some(error) => {
                let told = BrokenOff(Some(error.to_string().into()));
                state.end = RecordingEnd::Broken(Some(told.into()));
                NextFrame::Broken(error)
            }
            None => NextFrame::Broken(BrokenOff(None).into()),
        },
        RecordingEnd::Open => {
            if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.waiting.push(cx.waker().clone());
            }
            NextFrame::Wait
        }
    }
}
