//! What a request to each operation of the Step Functions API may look like. A table: it may be long.
//!
//! Written by hack/states-model.py from the service's model of 2016-11-23 inside botocore. Do not edit.

use super::check::{Member, Operation, Shape};

/// The operations, by name.
pub(crate) static OPERATIONS: &[Operation] = &[
    Operation {
        name: "CreateActivity",
        input: &S_CREATE_ACTIVITY_INPUT,
        errors: &[
            "ActivityAlreadyExists",
            "ActivityLimitExceeded",
            "InvalidEncryptionConfiguration",
            "InvalidName",
            "KmsAccessDeniedException",
            "KmsThrottlingException",
            "TooManyTags",
        ],
    },
    Operation {
        name: "CreateStateMachine",
        input: &S_CREATE_STATE_MACHINE_INPUT,
        errors: &[
            "ConflictException",
            "InvalidArn",
            "InvalidDefinition",
            "InvalidEncryptionConfiguration",
            "InvalidLoggingConfiguration",
            "InvalidName",
            "InvalidTracingConfiguration",
            "KmsAccessDeniedException",
            "KmsThrottlingException",
            "StateMachineAlreadyExists",
            "StateMachineDeleting",
            "StateMachineLimitExceeded",
            "StateMachineTypeNotSupported",
            "TooManyTags",
            "ValidationException",
        ],
    },
    Operation {
        name: "CreateStateMachineAlias",
        input: &S_CREATE_STATE_MACHINE_ALIAS_INPUT,
        errors: &[
            "ConflictException",
            "InvalidArn",
            "InvalidName",
            "ResourceNotFound",
            "ServiceQuotaExceededException",
            "StateMachineDeleting",
            "ValidationException",
        ],
    },
    Operation { name: "DeleteActivity", input: &S_DELETE_ACTIVITY_INPUT, errors: &["InvalidArn"] },
    Operation {
        name: "DeleteStateMachine",
        input: &S_DELETE_STATE_MACHINE_INPUT,
        errors: &["InvalidArn", "ValidationException"],
    },
    Operation {
        name: "DeleteStateMachineAlias",
        input: &S_DELETE_STATE_MACHINE_ALIAS_INPUT,
        errors: &["ConflictException", "InvalidArn", "ResourceNotFound", "ValidationException"],
    },
    Operation {
        name: "DeleteStateMachineVersion",
        input: &S_DELETE_STATE_MACHINE_VERSION_INPUT,
        errors: &["ConflictException", "InvalidArn", "ValidationException"],
    },
    Operation {
        name: "DescribeActivity",
        input: &S_DESCRIBE_ACTIVITY_INPUT,
        errors: &["ActivityDoesNotExist", "InvalidArn"],
    },
    Operation {
        name: "DescribeExecution",
        input: &S_DESCRIBE_EXECUTION_INPUT,
        errors: &[
            "ExecutionDoesNotExist",
            "InvalidArn",
            "KmsAccessDeniedException",
            "KmsInvalidStateException",
            "KmsThrottlingException",
        ],
    },
    Operation { name: "DescribeMapRun", input: &S_DESCRIBE_MAP_RUN_INPUT, errors: &["InvalidArn", "ResourceNotFound"] },
    Operation {
        name: "DescribeStateMachine",
        input: &S_DESCRIBE_STATE_MACHINE_INPUT,
        errors: &[
            "InvalidArn",
            "KmsAccessDeniedException",
            "KmsInvalidStateException",
            "KmsThrottlingException",
            "StateMachineDoesNotExist",
        ],
    },
    Operation {
        name: "DescribeStateMachineAlias",
        input: &S_DESCRIBE_STATE_MACHINE_ALIAS_INPUT,
        errors: &["InvalidArn", "ResourceNotFound", "ValidationException"],
    },
    Operation {
        name: "DescribeStateMachineForExecution",
        input: &S_DESCRIBE_STATE_MACHINE_FOR_EXECUTION_INPUT,
        errors: &[
            "ExecutionDoesNotExist",
            "InvalidArn",
            "KmsAccessDeniedException",
            "KmsInvalidStateException",
            "KmsThrottlingException",
        ],
    },
    Operation {
        name: "GetActivityTask",
        input: &S_GET_ACTIVITY_TASK_INPUT,
        errors: &[
            "ActivityDoesNotExist",
            "ActivityWorkerLimitExceeded",
            "InvalidArn",
            "KmsAccessDeniedException",
            "KmsInvalidStateException",
            "KmsThrottlingException",
        ],
    },
    Operation {
        name: "GetExecutionHistory",
        input: &S_GET_EXECUTION_HISTORY_INPUT,
        errors: &[
            "ExecutionDoesNotExist",
            "InvalidArn",
            "InvalidToken",
            "KmsAccessDeniedException",
            "KmsInvalidStateException",
            "KmsThrottlingException",
        ],
    },
    Operation { name: "ListActivities", input: &S_LIST_ACTIVITIES_INPUT, errors: &["InvalidToken"] },
    Operation {
        name: "ListExecutions",
        input: &S_LIST_EXECUTIONS_INPUT,
        errors: &[
            "InvalidArn",
            "InvalidToken",
            "ResourceNotFound",
            "StateMachineDoesNotExist",
            "StateMachineTypeNotSupported",
            "ValidationException",
        ],
    },
    Operation {
        name: "ListMapRuns",
        input: &S_LIST_MAP_RUNS_INPUT,
        errors: &["ExecutionDoesNotExist", "InvalidArn", "InvalidToken"],
    },
    Operation {
        name: "ListStateMachineAliases",
        input: &S_LIST_STATE_MACHINE_ALIASES_INPUT,
        errors: &["InvalidArn", "InvalidToken", "ResourceNotFound", "StateMachineDeleting", "StateMachineDoesNotExist"],
    },
    Operation {
        name: "ListStateMachineVersions",
        input: &S_LIST_STATE_MACHINE_VERSIONS_INPUT,
        errors: &["InvalidArn", "InvalidToken", "ValidationException"],
    },
    Operation { name: "ListStateMachines", input: &S_LIST_STATE_MACHINES_INPUT, errors: &["InvalidToken"] },
    Operation {
        name: "ListTagsForResource",
        input: &S_LIST_TAGS_FOR_RESOURCE_INPUT,
        errors: &["InvalidArn", "ResourceNotFound"],
    },
    Operation {
        name: "PublishStateMachineVersion",
        input: &S_PUBLISH_STATE_MACHINE_VERSION_INPUT,
        errors: &[
            "ConflictException",
            "InvalidArn",
            "ServiceQuotaExceededException",
            "StateMachineDeleting",
            "StateMachineDoesNotExist",
            "ValidationException",
        ],
    },
    Operation {
        name: "RedriveExecution",
        input: &S_REDRIVE_EXECUTION_INPUT,
        errors: &[
            "ExecutionDoesNotExist",
            "ExecutionLimitExceeded",
            "ExecutionNotRedrivable",
            "InvalidArn",
            "ValidationException",
        ],
    },
    Operation {
        name: "SendTaskFailure",
        input: &S_SEND_TASK_FAILURE_INPUT,
        errors: &[
            "InvalidToken",
            "KmsAccessDeniedException",
            "KmsInvalidStateException",
            "KmsThrottlingException",
            "TaskDoesNotExist",
            "TaskTimedOut",
        ],
    },
    Operation {
        name: "SendTaskHeartbeat",
        input: &S_SEND_TASK_HEARTBEAT_INPUT,
        errors: &["InvalidToken", "TaskDoesNotExist", "TaskTimedOut"],
    },
    Operation {
        name: "SendTaskSuccess",
        input: &S_SEND_TASK_SUCCESS_INPUT,
        errors: &[
            "InvalidOutput",
            "InvalidToken",
            "KmsAccessDeniedException",
            "KmsInvalidStateException",
            "KmsThrottlingException",
            "TaskDoesNotExist",
            "TaskTimedOut",
        ],
    },
    Operation {
        name: "StartExecution",
        input: &S_START_EXECUTION_INPUT,
        errors: &[
            "ExecutionAlreadyExists",
            "ExecutionLimitExceeded",
            "InvalidArn",
            "InvalidExecutionInput",
            "InvalidName",
            "KmsAccessDeniedException",
            "KmsInvalidStateException",
            "KmsThrottlingException",
            "StateMachineDeleting",
            "StateMachineDoesNotExist",
            "ValidationException",
        ],
    },
    Operation {
        name: "StartSyncExecution",
        input: &S_START_SYNC_EXECUTION_INPUT,
        errors: &[
            "InvalidArn",
            "InvalidExecutionInput",
            "InvalidName",
            "KmsAccessDeniedException",
            "KmsInvalidStateException",
            "KmsThrottlingException",
            "StateMachineDeleting",
            "StateMachineDoesNotExist",
            "StateMachineTypeNotSupported",
        ],
    },
    Operation {
        name: "StopExecution",
        input: &S_STOP_EXECUTION_INPUT,
        errors: &[
            "ExecutionDoesNotExist",
            "InvalidArn",
            "KmsAccessDeniedException",
            "KmsInvalidStateException",
            "KmsThrottlingException",
            "ValidationException",
        ],
    },
    Operation {
        name: "TagResource",
        input: &S_TAG_RESOURCE_INPUT,
        errors: &["InvalidArn", "ResourceNotFound", "TooManyTags"],
    },
    Operation {
        name: "TestState",
        input: &S_TEST_STATE_INPUT,
        errors: &["InvalidArn", "InvalidDefinition", "InvalidExecutionInput", "ValidationException"],
    },
    Operation { name: "UntagResource", input: &S_UNTAG_RESOURCE_INPUT, errors: &["InvalidArn", "ResourceNotFound"] },
    Operation {
        name: "UpdateMapRun",
        input: &S_UPDATE_MAP_RUN_INPUT,
        errors: &["InvalidArn", "ResourceNotFound", "ValidationException"],
    },
    Operation {
        name: "UpdateStateMachine",
        input: &S_UPDATE_STATE_MACHINE_INPUT,
        errors: &[
            "ConflictException",
            "InvalidArn",
            "InvalidDefinition",
            "InvalidEncryptionConfiguration",
            "InvalidLoggingConfiguration",
            "InvalidTracingConfiguration",
            "KmsAccessDeniedException",
            "KmsThrottlingException",
            "MissingRequiredParameter",
            "ServiceQuotaExceededException",
            "StateMachineDeleting",
            "StateMachineDoesNotExist",
            "ValidationException",
        ],
    },
    Operation {
        name: "UpdateStateMachineAlias",
        input: &S_UPDATE_STATE_MACHINE_ALIAS_INPUT,
        errors: &["ConflictException", "InvalidArn", "ResourceNotFound", "StateMachineDeleting", "ValidationException"],
    },
    Operation {
        name: "ValidateStateMachineDefinition",
        input: &S_VALIDATE_STATE_MACHINE_DEFINITION_INPUT,
        errors: &["ValidationException"],
    },
];

static S_NAME: Shape = Shape::Text { min: 1, max: Some(80), pattern: None, values: &[], secret: false };
static S_TAG_KEY: Shape = Shape::Text { min: 1, max: Some(128), pattern: None, values: &[], secret: false };
static S_TAG_VALUE: Shape = Shape::Text { min: 0, max: Some(256), pattern: None, values: &[], secret: false };
static S_TAG: Shape = Shape::Structure(&[
    Member { name: "key", required: false, shape: &S_TAG_KEY },
    Member { name: "value", required: false, shape: &S_TAG_VALUE },
]);
static S_TAG_LIST: Shape = Shape::List { of: &S_TAG, min: 0, max: None };
static S_KMS_KEY_ID: Shape = Shape::Text { min: 1, max: Some(2048), pattern: None, values: &[], secret: false };
static S_KMS_DATA_KEY_REUSE_PERIOD_SECONDS: Shape = Shape::Whole { min: Some(60), max: Some(900) };
static S_ENCRYPTION_TYPE: Shape = Shape::Text {
    min: 0,
    max: None,
    pattern: None,
    values: &["AWS_OWNED_KEY", "CUSTOMER_MANAGED_KMS_KEY"],
    secret: false,
};
static S_ENCRYPTION_CONFIGURATION: Shape = Shape::Structure(&[
    Member { name: "kmsKeyId", required: false, shape: &S_KMS_KEY_ID },
    Member { name: "kmsDataKeyReusePeriodSeconds", required: false, shape: &S_KMS_DATA_KEY_REUSE_PERIOD_SECONDS },
    Member { name: "type", required: true, shape: &S_ENCRYPTION_TYPE },
]);
static S_CREATE_ACTIVITY_INPUT: Shape = Shape::Structure(&[
    Member { name: "name", required: true, shape: &S_NAME },
    Member { name: "tags", required: false, shape: &S_TAG_LIST },
    Member { name: "encryptionConfiguration", required: false, shape: &S_ENCRYPTION_CONFIGURATION },
]);
static S_DEFINITION: Shape = Shape::Text { min: 1, max: Some(1048576), pattern: None, values: &[], secret: true };
static S_ARN: Shape = Shape::Text { min: 1, max: Some(256), pattern: None, values: &[], secret: false };
static S_STATE_MACHINE_TYPE: Shape =
    Shape::Text { min: 0, max: None, pattern: None, values: &["STANDARD", "EXPRESS"], secret: false };
static S_LOG_LEVEL: Shape =
    Shape::Text { min: 0, max: None, pattern: None, values: &["ALL", "ERROR", "FATAL", "OFF"], secret: false };
static S_INCLUDE_EXECUTION_DATA: Shape = Shape::Boolean;
static S_CLOUD_WATCH_LOGS_LOG_GROUP: Shape =
    Shape::Structure(&[Member { name: "logGroupArn", required: false, shape: &S_ARN }]);
static S_LOG_DESTINATION: Shape = Shape::Structure(&[Member {
    name: "cloudWatchLogsLogGroup",
    required: false,
    shape: &S_CLOUD_WATCH_LOGS_LOG_GROUP,
}]);
static S_LOG_DESTINATION_LIST: Shape = Shape::List { of: &S_LOG_DESTINATION, min: 0, max: None };
static S_LOGGING_CONFIGURATION: Shape = Shape::Structure(&[
    Member { name: "level", required: false, shape: &S_LOG_LEVEL },
    Member { name: "includeExecutionData", required: false, shape: &S_INCLUDE_EXECUTION_DATA },
    Member { name: "destinations", required: false, shape: &S_LOG_DESTINATION_LIST },
]);
static S_ENABLED: Shape = Shape::Boolean;
static S_TRACING_CONFIGURATION: Shape =
    Shape::Structure(&[Member { name: "enabled", required: false, shape: &S_ENABLED }]);
static S_PUBLISH: Shape = Shape::Boolean;
static S_VERSION_DESCRIPTION: Shape = Shape::Text { min: 0, max: Some(256), pattern: None, values: &[], secret: true };
static S_CREATE_STATE_MACHINE_INPUT: Shape = Shape::Structure(&[
    Member { name: "name", required: true, shape: &S_NAME },
    Member { name: "definition", required: true, shape: &S_DEFINITION },
    Member { name: "roleArn", required: true, shape: &S_ARN },
    Member { name: "type", required: false, shape: &S_STATE_MACHINE_TYPE },
    Member { name: "loggingConfiguration", required: false, shape: &S_LOGGING_CONFIGURATION },
    Member { name: "tags", required: false, shape: &S_TAG_LIST },
    Member { name: "tracingConfiguration", required: false, shape: &S_TRACING_CONFIGURATION },
    Member { name: "publish", required: false, shape: &S_PUBLISH },
    Member { name: "versionDescription", required: false, shape: &S_VERSION_DESCRIPTION },
    Member { name: "encryptionConfiguration", required: false, shape: &S_ENCRYPTION_CONFIGURATION },
]);
static S_ALIAS_DESCRIPTION: Shape = Shape::Text { min: 0, max: Some(256), pattern: None, values: &[], secret: true };
static S_CHARACTER_RESTRICTED_NAME: Shape = Shape::Text {
    min: 1,
    max: Some(80),
    pattern: Some(r#"^(?=.*[a-zA-Z_\-\.])[a-zA-Z0-9_\-\.]+$"#),
    values: &[],
    secret: false,
};
static S_VERSION_WEIGHT: Shape = Shape::Whole { min: Some(0), max: Some(100) };
static S_ROUTING_CONFIGURATION_LIST_ITEM: Shape = Shape::Structure(&[
    Member { name: "stateMachineVersionArn", required: true, shape: &S_ARN },
    Member { name: "weight", required: true, shape: &S_VERSION_WEIGHT },
]);
static S_ROUTING_CONFIGURATION_LIST: Shape =
    Shape::List { of: &S_ROUTING_CONFIGURATION_LIST_ITEM, min: 1, max: Some(2) };
static S_CREATE_STATE_MACHINE_ALIAS_INPUT: Shape = Shape::Structure(&[
    Member { name: "description", required: false, shape: &S_ALIAS_DESCRIPTION },
    Member { name: "name", required: true, shape: &S_CHARACTER_RESTRICTED_NAME },
    Member { name: "routingConfiguration", required: true, shape: &S_ROUTING_CONFIGURATION_LIST },
]);
static S_DELETE_ACTIVITY_INPUT: Shape =
    Shape::Structure(&[Member { name: "activityArn", required: true, shape: &S_ARN }]);
static S_DELETE_STATE_MACHINE_INPUT: Shape =
    Shape::Structure(&[Member { name: "stateMachineArn", required: true, shape: &S_ARN }]);
static S_DELETE_STATE_MACHINE_ALIAS_INPUT: Shape =
    Shape::Structure(&[Member { name: "stateMachineAliasArn", required: true, shape: &S_ARN }]);
static S_LONG_ARN: Shape = Shape::Text { min: 1, max: Some(2000), pattern: None, values: &[], secret: false };
static S_DELETE_STATE_MACHINE_VERSION_INPUT: Shape =
    Shape::Structure(&[Member { name: "stateMachineVersionArn", required: true, shape: &S_LONG_ARN }]);
static S_DESCRIBE_ACTIVITY_INPUT: Shape =
    Shape::Structure(&[Member { name: "activityArn", required: true, shape: &S_ARN }]);
static S_INCLUDED_DATA: Shape =
    Shape::Text { min: 0, max: None, pattern: None, values: &["ALL_DATA", "METADATA_ONLY"], secret: false };
static S_DESCRIBE_EXECUTION_INPUT: Shape = Shape::Structure(&[
    Member { name: "executionArn", required: true, shape: &S_ARN },
    Member { name: "includedData", required: false, shape: &S_INCLUDED_DATA },
]);
static S_DESCRIBE_MAP_RUN_INPUT: Shape =
    Shape::Structure(&[Member { name: "mapRunArn", required: true, shape: &S_LONG_ARN }]);
static S_DESCRIBE_STATE_MACHINE_INPUT: Shape = Shape::Structure(&[
    Member { name: "stateMachineArn", required: true, shape: &S_ARN },
    Member { name: "includedData", required: false, shape: &S_INCLUDED_DATA },
]);
static S_DESCRIBE_STATE_MACHINE_ALIAS_INPUT: Shape =
    Shape::Structure(&[Member { name: "stateMachineAliasArn", required: true, shape: &S_ARN }]);
static S_DESCRIBE_STATE_MACHINE_FOR_EXECUTION_INPUT: Shape = Shape::Structure(&[
    Member { name: "executionArn", required: true, shape: &S_ARN },
    Member { name: "includedData", required: false, shape: &S_INCLUDED_DATA },
]);
static S_GET_ACTIVITY_TASK_INPUT: Shape = Shape::Structure(&[
    Member { name: "activityArn", required: true, shape: &S_ARN },
    Member { name: "workerName", required: false, shape: &S_NAME },
]);
static S_PAGE_SIZE: Shape = Shape::Whole { min: Some(0), max: Some(1000) };
static S_REVERSE_ORDER: Shape = Shape::Boolean;
static S_PAGE_TOKEN: Shape = Shape::Text { min: 1, max: Some(1024), pattern: None, values: &[], secret: false };
static S_INCLUDE_EXECUTION_DATA_GET_EXECUTION_HISTORY: Shape = Shape::Boolean;
static S_GET_EXECUTION_HISTORY_INPUT: Shape = Shape::Structure(&[
    Member { name: "executionArn", required: true, shape: &S_ARN },
    Member { name: "maxResults", required: false, shape: &S_PAGE_SIZE },
    Member { name: "reverseOrder", required: false, shape: &S_REVERSE_ORDER },
    Member { name: "nextToken", required: false, shape: &S_PAGE_TOKEN },
    Member { name: "includeExecutionData", required: false, shape: &S_INCLUDE_EXECUTION_DATA_GET_EXECUTION_HISTORY },
]);
static S_LIST_ACTIVITIES_INPUT: Shape = Shape::Structure(&[
    Member { name: "maxResults", required: false, shape: &S_PAGE_SIZE },
    Member { name: "nextToken", required: false, shape: &S_PAGE_TOKEN },
]);
static S_EXECUTION_STATUS: Shape = Shape::Text {
    min: 0,
    max: None,
    pattern: None,
    values: &["RUNNING", "SUCCEEDED", "FAILED", "TIMED_OUT", "ABORTED", "PENDING_REDRIVE"],
    secret: false,
};
static S_LIST_EXECUTIONS_PAGE_TOKEN: Shape =
    Shape::Text { min: 1, max: Some(3096), pattern: None, values: &[], secret: false };
static S_EXECUTION_REDRIVE_FILTER: Shape =
    Shape::Text { min: 0, max: None, pattern: None, values: &["REDRIVEN", "NOT_REDRIVEN"], secret: false };
static S_LIST_EXECUTIONS_INPUT: Shape = Shape::Structure(&[
    Member { name: "stateMachineArn", required: false, shape: &S_ARN },
    Member { name: "statusFilter", required: false, shape: &S_EXECUTION_STATUS },
    Member { name: "maxResults", required: false, shape: &S_PAGE_SIZE },
    Member { name: "nextToken", required: false, shape: &S_LIST_EXECUTIONS_PAGE_TOKEN },
    Member { name: "mapRunArn", required: false, shape: &S_LONG_ARN },
    Member { name: "redriveFilter", required: false, shape: &S_EXECUTION_REDRIVE_FILTER },
]);
static S_LIST_MAP_RUNS_INPUT: Shape = Shape::Structure(&[
    Member { name: "executionArn", required: true, shape: &S_ARN },
    Member { name: "maxResults", required: false, shape: &S_PAGE_SIZE },
    Member { name: "nextToken", required: false, shape: &S_PAGE_TOKEN },
]);
static S_LIST_STATE_MACHINE_ALIASES_INPUT: Shape = Shape::Structure(&[
    Member { name: "stateMachineArn", required: true, shape: &S_ARN },
    Member { name: "nextToken", required: false, shape: &S_PAGE_TOKEN },
    Member { name: "maxResults", required: false, shape: &S_PAGE_SIZE },
]);
static S_LIST_STATE_MACHINE_VERSIONS_INPUT: Shape = Shape::Structure(&[
    Member { name: "stateMachineArn", required: true, shape: &S_ARN },
    Member { name: "nextToken", required: false, shape: &S_PAGE_TOKEN },
    Member { name: "maxResults", required: false, shape: &S_PAGE_SIZE },
]);
static S_LIST_STATE_MACHINES_INPUT: Shape = Shape::Structure(&[
    Member { name: "maxResults", required: false, shape: &S_PAGE_SIZE },
    Member { name: "nextToken", required: false, shape: &S_PAGE_TOKEN },
]);
static S_LIST_TAGS_FOR_RESOURCE_INPUT: Shape =
    Shape::Structure(&[Member { name: "resourceArn", required: true, shape: &S_ARN }]);
static S_REVISION_ID: Shape = Shape::Text { min: 0, max: None, pattern: None, values: &[], secret: false };
static S_PUBLISH_STATE_MACHINE_VERSION_INPUT: Shape = Shape::Structure(&[
    Member { name: "stateMachineArn", required: true, shape: &S_ARN },
    Member { name: "revisionId", required: false, shape: &S_REVISION_ID },
    Member { name: "description", required: false, shape: &S_VERSION_DESCRIPTION },
]);
static S_CLIENT_TOKEN: Shape =
    Shape::Text { min: 1, max: Some(64), pattern: Some("[!-~]+"), values: &[], secret: false };
static S_REDRIVE_EXECUTION_INPUT: Shape = Shape::Structure(&[
    Member { name: "executionArn", required: true, shape: &S_ARN },
    Member { name: "clientToken", required: false, shape: &S_CLIENT_TOKEN },
]);
static S_TASK_TOKEN: Shape = Shape::Text { min: 1, max: Some(2048), pattern: None, values: &[], secret: true };
static S_SENSITIVE_ERROR: Shape = Shape::Text { min: 0, max: Some(256), pattern: None, values: &[], secret: true };
static S_SENSITIVE_CAUSE: Shape = Shape::Text { min: 0, max: Some(32768), pattern: None, values: &[], secret: true };
static S_SEND_TASK_FAILURE_INPUT: Shape = Shape::Structure(&[
    Member { name: "taskToken", required: true, shape: &S_TASK_TOKEN },
    Member { name: "error", required: false, shape: &S_SENSITIVE_ERROR },
    Member { name: "cause", required: false, shape: &S_SENSITIVE_CAUSE },
]);
static S_SEND_TASK_HEARTBEAT_INPUT: Shape =
    Shape::Structure(&[Member { name: "taskToken", required: true, shape: &S_TASK_TOKEN }]);
static S_SENSITIVE_DATA: Shape = Shape::Text { min: 0, max: Some(262144), pattern: None, values: &[], secret: true };
static S_SEND_TASK_SUCCESS_INPUT: Shape = Shape::Structure(&[
    Member { name: "taskToken", required: true, shape: &S_TASK_TOKEN },
    Member { name: "output", required: true, shape: &S_SENSITIVE_DATA },
]);
static S_TRACE_HEADER: Shape =
    Shape::Text { min: 0, max: Some(256), pattern: Some(r#"\p{ASCII}*"#), values: &[], secret: false };
static S_START_EXECUTION_INPUT: Shape = Shape::Structure(&[
    Member { name: "stateMachineArn", required: true, shape: &S_ARN },
    Member { name: "name", required: false, shape: &S_NAME },
    Member { name: "input", required: false, shape: &S_SENSITIVE_DATA },
    Member { name: "traceHeader", required: false, shape: &S_TRACE_HEADER },
]);
static S_START_SYNC_EXECUTION_INPUT: Shape = Shape::Structure(&[
    Member { name: "stateMachineArn", required: true, shape: &S_ARN },
    Member { name: "name", required: false, shape: &S_NAME },
    Member { name: "input", required: false, shape: &S_SENSITIVE_DATA },
    Member { name: "traceHeader", required: false, shape: &S_TRACE_HEADER },
    Member { name: "includedData", required: false, shape: &S_INCLUDED_DATA },
]);
static S_STOP_EXECUTION_INPUT: Shape = Shape::Structure(&[
    Member { name: "executionArn", required: true, shape: &S_ARN },
    Member { name: "error", required: false, shape: &S_SENSITIVE_ERROR },
    Member { name: "cause", required: false, shape: &S_SENSITIVE_CAUSE },
]);
static S_TAG_RESOURCE_INPUT: Shape = Shape::Structure(&[
    Member { name: "resourceArn", required: true, shape: &S_ARN },
    Member { name: "tags", required: true, shape: &S_TAG_LIST },
]);
static S_INSPECTION_LEVEL: Shape =
    Shape::Text { min: 0, max: None, pattern: None, values: &["INFO", "DEBUG", "TRACE"], secret: false };
static S_REVEAL_SECRETS: Shape = Shape::Boolean;
static S_TEST_STATE_STATE_NAME: Shape = Shape::Text { min: 1, max: Some(80), pattern: None, values: &[], secret: true };
static S_MOCK_ERROR_OUTPUT: Shape = Shape::Structure(&[
    Member { name: "error", required: false, shape: &S_SENSITIVE_ERROR },
    Member { name: "cause", required: false, shape: &S_SENSITIVE_CAUSE },
]);
static S_MOCK_RESPONSE_VALIDATION_MODE: Shape =
    Shape::Text { min: 0, max: None, pattern: None, values: &["STRICT", "PRESENT", "NONE"], secret: false };
static S_MOCK_INPUT: Shape = Shape::Structure(&[
    Member { name: "result", required: false, shape: &S_SENSITIVE_DATA },
    Member { name: "errorOutput", required: false, shape: &S_MOCK_ERROR_OUTPUT },
    Member { name: "fieldValidationMode", required: false, shape: &S_MOCK_RESPONSE_VALIDATION_MODE },
]);
static S_RETRIER_RETRY_COUNT: Shape = Shape::Whole { min: Some(0), max: None };
static S_MAP_ITERATION_FAILURE_COUNT: Shape = Shape::Whole { min: Some(0), max: None };
static S_TEST_STATE_CONFIGURATION: Shape = Shape::Structure(&[
    Member { name: "retrierRetryCount", required: false, shape: &S_RETRIER_RETRY_COUNT },
    Member { name: "errorCausedByState", required: false, shape: &S_TEST_STATE_STATE_NAME },
    Member { name: "mapIterationFailureCount", required: false, shape: &S_MAP_ITERATION_FAILURE_COUNT },
    Member { name: "mapItemReaderData", required: false, shape: &S_SENSITIVE_DATA },
]);
static S_TEST_STATE_INPUT: Shape = Shape::Structure(&[
    Member { name: "definition", required: true, shape: &S_DEFINITION },
    Member { name: "roleArn", required: false, shape: &S_ARN },
    Member { name: "input", required: false, shape: &S_SENSITIVE_DATA },
    Member { name: "inspectionLevel", required: false, shape: &S_INSPECTION_LEVEL },
    Member { name: "revealSecrets", required: false, shape: &S_REVEAL_SECRETS },
    Member { name: "variables", required: false, shape: &S_SENSITIVE_DATA },
    Member { name: "stateName", required: false, shape: &S_TEST_STATE_STATE_NAME },
    Member { name: "mock", required: false, shape: &S_MOCK_INPUT },
    Member { name: "context", required: false, shape: &S_SENSITIVE_DATA },
    Member { name: "stateConfiguration", required: false, shape: &S_TEST_STATE_CONFIGURATION },
]);
static S_TAG_KEY_LIST: Shape = Shape::List { of: &S_TAG_KEY, min: 0, max: None };
static S_UNTAG_RESOURCE_INPUT: Shape = Shape::Structure(&[
    Member { name: "resourceArn", required: true, shape: &S_ARN },
    Member { name: "tagKeys", required: true, shape: &S_TAG_KEY_LIST },
]);
static S_MAX_CONCURRENCY: Shape = Shape::Whole { min: Some(0), max: None };
static S_TOLERATED_FAILURE_PERCENTAGE: Shape = Shape::Float { min: Some(0.0), max: Some(100.0) };
static S_TOLERATED_FAILURE_COUNT: Shape = Shape::Whole { min: Some(0), max: None };
static S_UPDATE_MAP_RUN_INPUT: Shape = Shape::Structure(&[
    Member { name: "mapRunArn", required: true, shape: &S_LONG_ARN },
    Member { name: "maxConcurrency", required: false, shape: &S_MAX_CONCURRENCY },
    Member { name: "toleratedFailurePercentage", required: false, shape: &S_TOLERATED_FAILURE_PERCENTAGE },
    Member { name: "toleratedFailureCount", required: false, shape: &S_TOLERATED_FAILURE_COUNT },
]);
static S_UPDATE_STATE_MACHINE_INPUT: Shape = Shape::Structure(&[
    Member { name: "stateMachineArn", required: true, shape: &S_ARN },
    Member { name: "definition", required: false, shape: &S_DEFINITION },
    Member { name: "roleArn", required: false, shape: &S_ARN },
    Member { name: "loggingConfiguration", required: false, shape: &S_LOGGING_CONFIGURATION },
    Member { name: "tracingConfiguration", required: false, shape: &S_TRACING_CONFIGURATION },
    Member { name: "publish", required: false, shape: &S_PUBLISH },
    Member { name: "versionDescription", required: false, shape: &S_VERSION_DESCRIPTION },
    Member { name: "encryptionConfiguration", required: false, shape: &S_ENCRYPTION_CONFIGURATION },
]);
static S_UPDATE_STATE_MACHINE_ALIAS_INPUT: Shape = Shape::Structure(&[
    Member { name: "stateMachineAliasArn", required: true, shape: &S_ARN },
    Member { name: "description", required: false, shape: &S_ALIAS_DESCRIPTION },
    Member { name: "routingConfiguration", required: false, shape: &S_ROUTING_CONFIGURATION_LIST },
]);
static S_VALIDATE_STATE_MACHINE_DEFINITION_SEVERITY: Shape =
    Shape::Text { min: 0, max: None, pattern: None, values: &["ERROR", "WARNING"], secret: false };
static S_VALIDATE_STATE_MACHINE_DEFINITION_MAX_RESULT: Shape = Shape::Whole { min: Some(0), max: Some(100) };
static S_VALIDATE_STATE_MACHINE_DEFINITION_INPUT: Shape = Shape::Structure(&[
    Member { name: "definition", required: true, shape: &S_DEFINITION },
    Member { name: "type", required: false, shape: &S_STATE_MACHINE_TYPE },
    Member { name: "severity", required: false, shape: &S_VALIDATE_STATE_MACHINE_DEFINITION_SEVERITY },
    Member { name: "maxResults", required: false, shape: &S_VALIDATE_STATE_MACHINE_DEFINITION_MAX_RESULT },
]);
