"""Worktrees of tasks: made, verified, kept account of, merged and removed.

    git         git as a program: without a shell, without prompts, hooks and what the environment says of repositories
    registry    one file for each worktree, written at once, so that every crash leaves it true
    worktrees   makes and verifies a worktree, takes in what an attempt has left, removes what is in no danger
    commands    the set-up and the check: programs with a time limit
    merging     the merge gate: a branch comes into its base whole, or not at all

What is done to a repository is done under the lock of its owner (`registry.Owned`), except for merging, which
changes nothing but its own scratch worktree until the base moves from one commit to the next.
"""
