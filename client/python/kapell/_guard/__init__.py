"""`kapell lock guard`: from a change that is about to happen to the locks that it needs, and their fences.

    calls       what a tool call of an agent would change
    staged      what a commit would change, and the hook that asks
    workspace   the lock paths of files
    fences      whether our locks cover these paths and are in force, and who is in the way

Nothing here decides who may have a lock; it only asks. What cannot be found out counts as no.
"""
