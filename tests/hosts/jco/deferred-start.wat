;; A call that starts later because another one runs in the callee: README.md beside this file.
;;
;; `run` calls `f` of another component with texts of 3 and 4 bytes, the second time while the first call runs, and returns the sum of the
;; results: 7.
(component
  (component $callee
    (core module $code
      (import "" "return" (func $return (param i32)))
      (import "" "yield" (func $yield (result i32)))
      (memory (export "memory") 1)
      (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 16))
      (func (export "f") (param i32 i32) (result i32)
        (drop (call $yield))
        (call $return (local.get 1))
        (i32.const 0)) ;; EXIT
      (func (export "callback") (param i32 i32 i32) (result i32) (unreachable)))
    (core func $return (canon task.return (result u32)))
    (core func $yield (canon thread.yield))
    (core instance $code (instantiate $code (with "" (instance
      (export "return" (func $return))
      (export "yield" (func $yield))))))
    ;; The length of the text. `yield` keeps the instance entered, so the second call waits until the first one has returned.
    (func (export "f") async (param "text" string) (result u32)
      (canon lift (core func $code "f") async (callback (core func $code "callback"))
        (memory (core memory $code "memory")) (realloc (core func $code "realloc")))))

  (component $caller
    (import "f" (func $f async (param "text" string) (result u32)))
    (core module $memory (memory (export "memory") 1) (data (i32.const 32) "abcd"))
    (core instance $memory (instantiate $memory))
    (core func $f (canon lower (func $f) async (memory (core memory $memory "memory"))))
    (core func $return (canon task.return (result u32)))
    (core func $set-new (canon waitable-set.new))
    (core func $join (canon waitable.join))
    (core func $subtask-drop (canon subtask.drop))
    (core module $code
      (import "" "memory" (memory 1))
      (import "" "f" (func $f (param i32 i32 i32) (result i32)))
      (import "" "return" (func $return (param i32)))
      (import "" "set-new" (func $set-new (result i32)))
      (import "" "join" (func $join (param i32 i32)))
      (import "" "subtask-drop" (func $subtask-drop (param i32)))
      (global $set (mut i32) (i32.const 0))
      (global $pending (mut i32) (i32.const 0))
      ;; Counts a call that has not returned yet.
      (func $begun (param $status i32)
        (if (i32.ne (i32.and (local.get $status) (i32.const 15)) (i32.const 2)) ;; RETURNED
          (then
            (call $join (i32.shr_u (local.get $status) (i32.const 4)) (global.get $set))
            (global.set $pending (i32.add (global.get $pending) (i32.const 1))))))
      (func $next (result i32)
        (if (result i32) (global.get $pending)
          (then (i32.or (i32.shl (global.get $set) (i32.const 4)) (i32.const 2))) ;; WAIT
          (else
            (call $return (i32.add (i32.load (i32.const 0)) (i32.load (i32.const 4))))
            (i32.const 0)))) ;; EXIT
      (func (export "run") (result i32)
        (global.set $set (call $set-new))
        (call $begun (call $f (i32.const 32) (i32.const 3) (i32.const 0)))
        (call $begun (call $f (i32.const 32) (i32.const 4) (i32.const 4)))
        (call $next))
      (func (export "callback") (param $event i32) (param $subtask i32) (param $state i32) (result i32)
        (if (i32.eq (local.get $state) (i32.const 2)) ;; RETURNED
          (then
            (call $subtask-drop (local.get $subtask))
            (global.set $pending (i32.sub (global.get $pending) (i32.const 1)))))
        (call $next)))
    (core instance $code (instantiate $code (with "" (instance
      (export "memory" (memory $memory "memory"))
      (export "f" (func $f))
      (export "return" (func $return))
      (export "set-new" (func $set-new))
      (export "join" (func $join))
      (export "subtask-drop" (func $subtask-drop))))))
    (func (export "run") async (result u32)
      (canon lift (core func $code "run") async (callback (core func $code "callback")))))

  (instance $callee (instantiate $callee))
  (instance $caller (instantiate $caller (with "f" (func $callee "f"))))
  (export "run" (func $caller "run")))
