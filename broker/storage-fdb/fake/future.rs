//! What the C API calls a future: all of them have their answer at once, but watches.

use std::ffi::c_void;
use std::sync::Arc;

use foundationdb_sys::{FDBCallback, FDBFuture, FDBKeyValue};
use parking_lot::Mutex;

use crate::Stamp;
use crate::db::Pair;

pub(crate) enum Answer {
    Nothing,
    Version(i64),
    Value(Option<Vec<u8>>),
    Pairs(Vec<Pair>, bool),
    /// Known once the transaction has committed.
    Stamp(Arc<Mutex<Option<Stamp>>>),
    Watch(Arc<Signal>),
}

pub(crate) struct Future {
    pub(crate) answer: Result<Answer, i32>,
    /// What [`Answer::Pairs`] looks like to C.
    pub(crate) array: Vec<FDBKeyValue>,
    /// What [`Answer::Stamp`] does.
    pub(crate) stamp: Stamp,
}

/// Something that happens once.
#[derive(Default)]
pub(crate) struct Signal(Mutex<(bool, Option<Wake>)>);

struct Wake(unsafe extern "C" fn(*mut FDBFuture, *mut c_void), *mut FDBFuture, *mut c_void);

// SAFETY: a callback of the C API may be called on any thread.
unsafe impl Send for Wake {}

impl Future {
    pub(crate) fn make(answer: Result<Answer, i32>) -> *mut FDBFuture {
        let mut future = Box::new(Self { answer, array: Vec::new(), stamp: [0; 10] });
        if let Ok(Answer::Pairs(pairs, _)) = &future.answer {
            let length = |bytes: &[u8]| i32::try_from(bytes.len()).expect("keys and values are short");
            let array = pairs.iter().map(|(key, value)| FDBKeyValue {
                key: key.as_ptr(),
                key_length: length(key),
                value: value.as_ptr(),
                value_length: length(value),
            });
            future.array = array.collect();
        }
        Box::into_raw(future).cast()
    }

    pub(crate) fn is_ready(&self) -> bool {
        match &self.answer {
            Ok(Answer::Watch(signal)) => signal.0.lock().0,
            Ok(_) | Err(_) => true,
        }
    }
}

impl Signal {
    pub(crate) fn fire(&self) {
        let wake = {
            let mut state = self.0.lock();
            state.0 = true;
            state.1.take()
        };
        if let Some(Wake(callback, future, parameter)) = wake {
            // SAFETY: whoever set the callback has it called once, on any thread.
            unsafe { callback(future, parameter) };
        }
    }

    pub(crate) fn on_fire(&self, callback: FDBCallback, future: *mut FDBFuture, parameter: *mut c_void) {
        let is_fired = {
            let mut state = self.0.lock();
            state.1 = callback.map(|callback| Wake(callback, future, parameter));
            state.0
        };
        if is_fired {
            self.fire();
        }
    }
}
