;; A call between components while a newer task of the caller waits for its start: README.md beside this file.
;;
;; `run` calls `f` of another component with 3 and 4, the second time while the first call runs, and returns the sum of the results: 7.
(component
  (component $third
    (core module $code (func (export "g")))
    (core instance $code (instantiate $code))
    (func (export "g") (canon lift (core func $code "g"))))

  (component $callee
    (import "g" (func $g))
    (core func $g (canon lower (func $g)))
    (core func $return (canon task.return (result u32)))
    (core func $yield (canon thread.yield))
    (core func $context-set (canon context.set i32 0))
    (core func $context-get (canon context.get i32 0))
    (core module $code
      (import "" "g" (func $g))
      (import "" "return" (func $return (param i32)))
      (import "" "yield" (func $yield (result i32)))
      (import "" "context-set" (func $context-set (param i32)))
      (import "" "context-get" (func $context-get (result i32)))
      (func (export "f") (param i32) (result i32)
        ;; A new task has an empty context.
        (if (call $context-get) (then (unreachable)))
        (drop (call $yield))
        (call $g)
        (call $context-set (local.get 0))
        (i32.const 1)) ;; YIELD
      (func (export "callback") (param i32 i32 i32) (result i32)
        (call $return (call $context-get))
        (i32.const 0))) ;; EXIT
    (core instance $code (instantiate $code (with "" (instance
      (export "g" (func $g))
      (export "return" (func $return))
      (export "yield" (func $yield))
      (export "context-set" (func $context-set))
      (export "context-get" (func $context-get))))))
    ;; The number, which is kept in the context of the task while other tasks run.
    (func (export "f") async (param "number" u32) (result u32)
      (canon lift (core func $code "f") async (callback (core func $code "callback")))))

  (component $caller
    (import "f" (func $f async (param "number" u32) (result u32)))
    (core module $memory (memory (export "memory") 1))
    (core instance $memory (instantiate $memory))
    (core func $f (canon lower (func $f) async (memory (core memory $memory "memory"))))
    (core func $return (canon task.return (result u32)))
    (core func $set-new (canon waitable-set.new))
    (core func $join (canon waitable.join))
    (core func $subtask-drop (canon subtask.drop))
    (core module $code
      (import "" "memory" (memory 1))
      (import "" "f" (func $f (param i32 i32) (result i32)))
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
        (call $begun (call $f (i32.const 3) (i32.const 0)))
        (call $begun (call $f (i32.const 4) (i32.const 4)))
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

  (instance $third (instantiate $third))
  (instance $callee (instantiate $callee (with "g" (func $third "g"))))
  (instance $caller (instantiate $caller (with "f" (func $callee "f"))))
  (export "run" (func $caller "run")))
